# SPDX-License-Identifier: Apache-2.0
"""Draw a cine's predicted boxes, view and defect into a PNG, to look at.

python tests/benchmarks/draw_predictions.py ../shared/data/color3d_jpeg_baseline.dcm real_cine.png [--models DIR]
"""

import argparse
from pathlib import Path

from echo_plugin.answer.predict import EchoPipeline
from echo_plugin.io.cine_file import read_cine
from echo_plugin.phantom.contact_sheet import SheetRow, draw_contact_sheet

ROOT = Path(__file__).resolve().parents[2]
ROWS, COLUMNS = 2, 4


def main() -> None:
    """Write the picture: frames spread over the cine, interatrial box blue, interventricular box orange."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cine", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--models", type=Path, default=ROOT / "apps" / "echo" / "model")
    arguments = parser.parse_args()
    cine = read_cine(arguments.cine)
    answer = EchoPipeline(arguments.models).predict(cine)
    count = ROWS * COLUMNS
    frame_indices = [i * cine.frame_count // count for i in range(count)]
    boxes = [tuple(box for box in answer.boxes if box.frame_index == index) for index in frame_indices]
    captions = [
        f"frame {index}: " + ", ".join(f"{box.septum.value} {box.score:.2f}" for box in found)
        for index, found in zip(frame_indices, boxes, strict=True)
    ]
    pictures = cine.read_frames(frame_indices)
    title = f"{answer.view.view.value} {answer.view.probability:.2f}" if answer.view else ""
    rows = [
        SheetRow(
            title if first == 0 else "",
            tuple(pictures[first : first + COLUMNS]),
            tuple(boxes[first : first + COLUMNS]),
            tuple(captions[first : first + COLUMNS]),
        )
        for first in range(0, count, COLUMNS)
    ]
    draw_contact_sheet(rows).save(arguments.png)


if __name__ == "__main__":
    main()
