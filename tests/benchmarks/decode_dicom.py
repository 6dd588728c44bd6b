# SPDX-License-Identifier: Apache-2.0
"""Measure the reading of a DICOM cine against plain pydicom, in the same run.

python tests/benchmarks/decode_dicom.py ../shared/data/color3d_jpeg_baseline.dcm
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.pixel_data_handlers.util import convert_color_space

from echo_plugin.io import dicom_cine
from echo_plugin.io.dicom_cine import read_dicom_cine

REPEATS = 5


def best_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the least wall and processor time of several runs, in s."""
    walls, processors = [], []
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)


def by_pydicom(path: Path, decoder: str) -> object:
    dataset = pydicom.dcmread(path)
    dataset.convert_pixel_data(decoder)
    return convert_color_space(dataset.pixel_array, "YBR_FULL", "RGB")


def by_one_thread(path: Path) -> object:
    cine = read_dicom_cine(path)
    return cine.frames._read_into(  # type: ignore[attr-defined]
        dicom_cine.np.empty(cine.frames.shape, dicom_cine.np.uint8), range(cine.frame_count)
    )


def main(path: Path) -> None:
    """Print a table: frames/s by wall and by processor time, and the ratio to the slow path."""
    frames = read_dicom_cine(path).frame_count
    ways: dict[str, Callable[[], object]] = {
        "pydicom + pillow": lambda: by_pydicom(path, "pillow"),
        "pydicom + gdcm": lambda: by_pydicom(path, "gdcm"),
        "echo_plugin, one thread": lambda: by_one_thread(path),
        "echo_plugin, as it is": lambda: read_dicom_cine(path).pixels,
    }
    measured = {name: best_seconds(work) for name, work in ways.items()}
    slow_wall, slow_processor = measured["pydicom + pillow"]
    sys.stdout.write(f"{path.name}: {frames} frames, best of {REPEATS}\n")
    for name, (wall, processor) in measured.items():
        sys.stdout.write(
            f"{name:26} {frames / wall:7.0f} frames/s wall ({slow_wall / wall:5.2f} x)"
            f" {frames / processor:7.0f} frames/s of one core ({slow_processor / processor:5.2f} x)\n"
        )
    opened, _ = best_seconds(lambda: read_dicom_cine(path))
    one, _ = best_seconds(lambda: read_dicom_cine(path).read_frames([frames // 2]))
    sys.stdout.write(f"opened in {opened * 1e3:.1f} ms; opened and one frame read in {one * 1e3:.1f} ms\n")


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Speed of reading a DICOM cine"):
        main(Path(sys.argv[1]))
