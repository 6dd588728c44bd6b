# SPDX-License-Identifier: Apache-2.0
"""Install the app into ``.venv`` beside this checkout (first start only) and serve a study folder.

Needs Python 3.11 or 3.12 and nothing else; the standard library is all it imports. Everything after the file's name
goes to ``monailabel-echo serve``; without arguments a copy of the samples is served on http://127.0.0.1:8000.

    python3.11 apps/echo/start.py
    python3.11 apps/echo/start.py --studies my_studies --port 8001
"""

import hashlib
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")


def install(lock: Path) -> None:
    """Make ``.venv`` hold exactly the versions of ``lock`` and this checkout; do nothing when it already does."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        sys.exit(f"Python {sys.version_info[0]}.{sys.version_info[1]} was found; start this with Python 3.11 or 3.12.")
    stamp = VENV / f"installed-{lock.parent.name}-{lock.stem}"
    wanted = hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return
    print(f"Installing into {VENV} (once; about a minute on a fast network) ...", flush=True)
    if not PYTHON.is_file():
        venv.create(VENV, with_pip=True)
    # The lock names everything, so nothing is resolved; monailabel's unused heavy extras are left out of it.
    packages = ["--no-deps", "-r", str(lock), "-e", str(ROOT)]
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uv"], check=True)
    uv = [str(PYTHON), "-m", "uv", "pip", "install", "--quiet", "--python", str(PYTHON)]
    if subprocess.run([*uv, *packages], check=False).returncode != 0:
        print("uv could not install the packages; trying pip, which takes longer ...", flush=True)
        subprocess.run([*pip, *packages], check=True)
    stamp.write_text(wanted, encoding="ascii")


def main() -> int:
    """Install if needed, then serve until Ctrl+C; return the server's exit code."""
    install(ROOT / "requirements.lock")
    # the last of two --studies counts, so what the caller says goes before the sample
    command = [str(PYTHON), "-m", "echo_plugin", "serve", "--studies", str(ROOT / "sample_studies"), *sys.argv[1:]]
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl+C is for the server, which ends its trainings; wait for it
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
