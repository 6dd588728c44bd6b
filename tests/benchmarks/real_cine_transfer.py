# SPDX-License-Identifier: Apache-2.0
"""How detector and view classifier do on the real four-chamber cine beside the checkout, and without a heart.

python tests/benchmarks/real_cine_transfer.py --models apps/echo/model [--data ../shared/data]
"""

import argparse
import json
import sys
from pathlib import Path

from echo_plugin.anatomy import View
from echo_plugin.io.cine_file import read_cine
from echo_plugin.papers.transfer import measure_transfer, measure_view_share, read_reference_boxes

ROOT = Path(__file__).resolve().parents[2]
CINE = "color3d_jpeg_baseline.dcm"
WITHOUT_HEART = (
    "OBXXXX1A_rle_2frame.dcm",
    "US1_J2KI.dcm",
    "gdcm-US-ALOKA-16.dcm",
    "US-YBR_FULL_422-EVRLE.dcm",
)


def measure(models: Path, data: Path) -> dict[str, object]:
    """Return the figures of `measure_transfer` for the real cine."""
    reference = read_reference_boxes(ROOT / "tests" / "real_reference_boxes.json")
    controls = [read_cine(data / name, image_id=Path(name).stem) for name in WITHOUT_HEART]
    cine = read_cine(data / CINE)
    return measure_transfer(models, cine, reference, controls) | {"A4C": measure_view_share(models, cine, View.A4C)}


def main() -> None:
    """Print the figures as JSON, and a table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "apps" / "echo" / "model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    result = measure(arguments.models, arguments.data)
    for copy, septa in result["copies"].items():
        figures = "   ".join(
            f"{name} IoU {s['mean_iou']:.3f} (constant {s['constant_iou']:.3f}) score {s['mean_score']:.2f}"
            for name, s in septa.items()
        )
        sys.stderr.write(f"{copy:28} {figures}\n")
    view = result["A4C"]
    sys.stderr.write(f"called A4C: {view['share']:.0%} of {view['clips']} clips, mean {view['mean_probability']:.2f}\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("A real four-chamber cine"):
        main()
