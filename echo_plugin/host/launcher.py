# SPDX-License-Identifier: Apache-2.0
"""``monailabel-echo serve``: check first, set what MONAI Label must be told, then serve until interrupted.

Beside it what a start by MONAI Label's own command lacks. Nothing here loads torch before the checks are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from echo_plugin.errors import EchoError
from echo_plugin.host.folders import cache_folder, log_file, served_folder, served_models, user_data
from echo_plugin.host.middleware import is_loopback
from echo_plugin.model_card import APP_FOLDER, STARTERS

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Threads that spin while they wait take 3 to 12 times as long when anything else runs, and 3D Slicer runs beside us.
It is read once, when torch is loaded."""


def serve(
    studies: Path | None,
    models: Path | None = None,
    *,
    pacs: str | None = None,
    sr: str = "off",
    auto_finetune: int = 0,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
) -> int:
    """Serve a study folder, or the cines of an archive, until interrupted; return the exit code.

    Parameters
    ----------
    studies
        The study folder; with ``pacs`` where fetched cines and annotations are kept. None: ``pacs_folder``.
    pacs
        Base address of the DICOMweb archive whose cines are served.
    sr
        auto: what people submit and models predict is also stored as DICOM SR.
    auto_finetune
        The septal detector is trained after so many submissions; 0: only on request.
    models
        Folder of published models; trainings publish there. None: the study folder's own, see ``served_models``.
    host, port
        Where to listen. There is no sign-in: any other host than loopback serves patients' data to the network.
    device
        auto, cpu or cuda.

    Raises
    ------
    EchoError
        If the folders or the port cannot be used; the message says which and what to do.
    """
    if pacs is not None:
        studies = _require_archive(pacs, studies or pacs_folder(pacs))
    else:
        asked = studies or Path("sample_studies")
        studies = served_folder(asked)
        if studies != asked:
            _say(f"The samples are served from a copy, {studies}; delete it to begin anew.")
        _require_studies(studies)
    models = served_models(studies, models, STARTERS)
    _require_models(models)
    listener = _listen(host, port)
    bound_port = listener.getsockname()[1]
    conf = {"device": device, "sr": sr, "auto_finetune": str(auto_finetune), **({"pacs": pacs} if pacs else {})}
    os.environ.update(server_environment(studies, models, conf=conf, port=bound_port))
    _say(f"Models are in {models}; trainings publish there.")
    if not is_loopback(host):
        _say(f"Listening on {host} without sign-in: everybody on that network can see the cines and change labels.")
    _say("Starting; the libraries take about half a minute to load.")
    from echo_plugin.host.routes.ohif import VIEWER

    VIEWER.start()
    import uvicorn
    from monailabel.utils.others.generic import init_log_config

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _say(ready_text(host, bound_port, pacs or str(studies)))

    log = log_file(cache_folder(studies))
    log_config = init_log_config(None, str(log.parent.parent), log.name, "INFO")
    config = uvicorn.Config("echo_plugin.host.server:app", log_config=log_config, access_log=False)
    server = Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def server_environment(studies: Path, models: Path, *, conf: Mapping[str, str], port: int) -> dict[str, str]:
    """Return the environment that the server, and the processes it starts, need.

    MONAI Label reads its settings when it is imported, and hands them to its training process this way.
    """
    python_path = [os.environ.get("PYTHONPATH", ""), str(APP_FOLDER)]
    return {
        "MONAI_LABEL_APP_DIR": str(APP_FOLDER),
        "MONAI_LABEL_STUDIES": str(studies.resolve()),
        "MONAI_LABEL_APP_CONF": json.dumps({"models": str(models.resolve()), **conf}),
        "MONAI_LABEL_SERVER_PORT": str(port),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # it starts a process at each next sample
        "MONAI_LABEL_TRACKING_ENABLED": "false",
        "MONAI_LABEL_SESSIONS": "false",
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
        "PYTHONPATH": os.pathsep.join(part for part in python_path if part),  # it must exist for a training to start
    }


def ready_text(host: str, port: int, studies: str) -> str:
    """Return what to open and what to do, for a person; ``studies``: the folder or archive that is served."""
    shown_host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://[{shown_host}]:{port}" if ":" in shown_host else f"http://{shown_host}:{port}"
    return f"""
READY. Serving {studies} at {url}

  In 3D Slicer  module MONAI Label, server {url}, press the arrow, then Next Sample.
                Boxes: drag those predicted, or draw with Markups > ROI on the frame you see and change the new
                control point's label from R-1 to IAS or IVS: a box without a name is kept, but teaches nothing.
                Submit Label stores them.
  In a browser  {url}/ohif/ (OHIF: the list of studies)
                {url}/docs (the API), {url}/info/ (what is offered)

Research only: not for clinical use. Ctrl+C ends the server."""


def pacs_folder(pacs: str) -> Path:
    """Return where the fetched cines and the annotations of an archive are kept if nobody names a folder."""
    return user_data() / f"pacs-{hashlib.sha256(pacs.rstrip('/').encode()).hexdigest()[:16]}"


def _require_archive(pacs: str, studies: Path) -> Path:
    """Return the folder of an archive after its address and credentials have been looked at."""
    from echo_plugin.host.pacs import Pacs, authorization_from_environment

    archive = Pacs(pacs, authorization_from_environment())
    studies.mkdir(parents=True, exist_ok=True, mode=0o700)
    _say(f"Cines come from the archive {archive.host}; those looked at, and all annotations, are kept in {studies}.")
    return studies


def _require_studies(studies: Path) -> None:
    if str(studies).startswith(("http:", "https:")):
        msg = f"Studies {studies} is a DICOMweb address; name it with --pacs."
        raise EchoError(msg)
    if not studies.is_dir():
        msg = f"Study folder {studies} does not exist; `monailabel-echo phantom {studies} --patients 4` makes one."
        raise EchoError(msg)
    from echo_plugin.io.study_folder import StudyFolder

    if not StudyFolder(studies).image_ids():
        msg = f"Study folder {studies} holds no cine; DICOM, video, picture and NRRD files are looked for."
        raise EchoError(msg)


def _require_models(models: Path) -> None:
    if not models.is_dir():
        msg = f"Model folder {models} does not exist; create it, or leave --models out for the starter weights."
        raise EchoError(msg)
    if not list(models.glob("*.safetensors")):
        _say(f"No model is published in {models}: cines can be annotated, and predicted after a training.")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        msg = f"Host {host} is no address of this machine ({exc.strerror}); 127.0.0.1 is."
        raise EchoError(msg) from exc
    if os.name == "posix":  # elsewhere it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as exc:
        listener.close()
        msg = f"Port {port} of {host} cannot be used ({exc.strerror}); choose another with --port."
        raise EchoError(msg) from exc
    return listener


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def restart_with_sleeping_threads() -> None:
    """Begin ``python -m monailabel.main`` again, as the same process, unless its threads were told how to wait.

    MONAI Label loads torch before it loads the app, and has opened no port by then. Elsewhere nothing happens; on
    Windows, where a process cannot become another one, only the trainings are told.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)
    if os.environ.get(WAIT_POLICY) or started is None or started.name != "monailabel.main":
        return
    os.environ[WAIT_POLICY] = "PASSIVE"
    if os.name == "posix":
        sys.stdout.flush()
        _say(f"Starting again with {WAIT_POLICY}=PASSIVE; set it to save these seconds.")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
