# SPDX-License-Identifier: Apache-2.0
"""Time DICOMweb as a viewer asks for it: lists of many instances, frames of an open cine, frames through an archive.

    python tests/benchmarks/dicomweb.py [--instances 5000]

Everything goes over sockets on loopback to a server in a thread of this process. Medians, of 50 frames and 5 lists.
Ends with 1 if the list of all instances takes a second or more, or a frame of an open cine 20 ms or more.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import uvicorn
from fastapi import FastAPI
from pydicom import dcmread
from pydicom.uid import generate_uid

from echo_plugin.anatomy import View
from echo_plugin.host.dicom_archive import DicomArchive
from echo_plugin.host.pacs import Pacs
from echo_plugin.host.routes import archive as archive_routes
from echo_plugin.host.routes import dicomweb
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.phantom.study import write_phantom_study_folder

STORED = {"accept": "multipart/related; type=application/octet-stream; transfer-syntax=*"}
PER_SERIES, PER_STUDY = 10, 20
FRAMES, LISTS = 50, 5


def make_folder(studies: Path, instances: int) -> None:
    """Write one real cine, and so many small pictures with its header."""
    write_phantom_study_folder(studies, patients=1, seed=1, views=[View.A4C], frames=20)
    header = dcmread(next(studies.rglob("*.dcm")), stop_before_pixels=True)
    header.NumberOfFrames, header.Rows, header.Columns = 1, 16, 16
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    header.add_new("PixelData", "OW", bytes(16 * 16 * header.SamplesPerPixel))
    (studies / "many").mkdir()
    for number in range(instances - 1):
        one = copy.copy(header)
        one.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(number // PER_STUDY)])
        one.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(number // PER_SERIES)])
        one.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(number)])
        one.save_as(studies / "many" / f"{number:05}.dcm", write_like_original=False)


def serve(router) -> str:
    """Return the address of a server in a thread of this process."""
    app, started = FastAPI(), threading.Event()
    app.include_router(router)

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    started.wait(60)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/dicom-web"


def timed(work, times: int) -> float:
    """Return the median seconds of ``work(0)``, ``work(1)``, ..."""
    seconds = []
    for number in range(times):
        started = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(instances: int) -> dict[str, float]:
    """Return milliseconds by what is asked for."""
    ms: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder / "studies", instances)
        started = time.perf_counter()
        archive = DicomArchive(StudyFolder(folder / "studies"))
        archive.studies.refresh()
        ms["first look at the files"] = 1000 * (time.perf_counter() - started)
        dicomweb.echo_app = lambda: SimpleNamespace(dicomweb=archive)
        here = serve(dicomweb.router)
        behind = SimpleNamespace(pacs=Pacs(here))
        archive_routes.echo_app = lambda: behind
        through = serve(archive_routes.router)
        cine = next(i for i in archive.studies.instances().values() if i.text("NumberOfFrames") == "20")
        frames = f"studies/{cine.study_uid}/series/{cine.series_uid}/instances/{cine.sop_uid}/frames"
        with httpx.Client(timeout=120, trust_env=False) as client:

            def get(url: str) -> httpx.Response:
                answer = client.get(url, headers=STORED if "frames" in url else {})
                answer.raise_for_status()
                return answer

            found = get(f"{here}/instances").json()
            assert len(found) == instances
            ms["list of all instances"] = 1000 * timed(lambda _: get(f"{here}/instances"), LISTS)
            ms["list of all studies"] = 1000 * timed(lambda _: get(f"{here}/studies"), LISTS)
            ms["page of 100 instances"] = 1000 * timed(lambda n: get(f"{here}/instances?limit=100&offset={n}"), LISTS)
            ms["first frame of a cine"] = 1000 * timed(lambda _: get(f"{here}/{frames}/1"), 1)
            ms["frame of an open cine"] = 1000 * timed(lambda n: get(f"{here}/{frames}/{n % 20 + 1}"), FRAMES)
            ms["the same through an archive"] = 1000 * timed(lambda n: get(f"{through}/{frames}/{n % 20 + 1}"), FRAMES)
    return ms


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ms = measure(options.instances)
    for what, value in ms.items():
        print(f"{what:<32}{value:>10.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(ms, indent=1) + "\n")
    return int(ms["list of all instances"] >= 1000 or ms["frame of an open cine"] >= 20)


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Speed of DICOMweb"):
        sys.exit(main())
