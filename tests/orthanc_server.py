# SPDX-License-Identifier: Apache-2.0
"""Debian's Orthanc as a foreign archive that nothing outside this process can reach.

Its version listens on every interface whatever it is told, so it gets a network of its own (`unshare -n`, which needs
root on Linux). A listener on this machine's loopback hands connections over, from threads that have entered it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_START = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:  # the new network's loopback is down
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14s", b"lo", 0x41, b""))
os.execvp(sys.argv[1], sys.argv[1:])
"""
_CLONE_NEWNET = 0x40000000
_PORT = 8042


def program() -> str | None:
    """Return the path of Orthanc where it, its DICOMweb plugin and the right to make a network are there."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    can_isolate = shutil.which("unshare") and subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0
    return found if found and PLUGIN.is_file() and can_isolate else None


class Orthanc:
    """A running Orthanc with an empty storage in ``folder``; ``url`` is its DICOMweb address on loopback."""

    def __init__(self, folder: Path) -> None:
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": _PORT,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        command = ["unshare", "-n", sys.executable, "-c", _START, program() or "Orthanc", str(folder / "orthanc.json")]
        with (folder / "orthanc.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/dicom-web"
        threading.Thread(target=self._accept, daemon=True).start()
        self._wait(folder / "orthanc.log")

    def stop(self) -> None:
        """End it by its own process id."""
        self._listener.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/studies", timeout=10):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        msg = f"Orthanc did not answer: {log.read_text(errors='replace')[-2000:]}"
        raise RuntimeError(msg)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._hand_over, args=(client,), daemon=True).start()

    def _hand_over(self, client: socket.socket) -> None:
        try:
            network = os.open(f"/proc/{self.process.pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(network, _CLONE_NEWNET):  # of this thread alone
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(network)
            server = socket.create_connection(("127.0.0.1", _PORT), 10)
            server.settimeout(None)
        except OSError:
            client.close()
            return
        threading.Thread(target=_pump, args=(client, server), daemon=True).start()
        _pump(server, client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
    finally:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
