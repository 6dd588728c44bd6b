# SPDX-License-Identifier: Apache-2.0
"""Print how fast phantom frames are made on one core, per view: ``python tests/benchmarks/phantom_frame_rate.py``."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import replace

import numpy as np

from echo_plugin.anatomy import View
from echo_plugin.phantom.bmode import record, set_up
from echo_plugin.phantom.heart import sample_heart
from echo_plugin.phantom.image_formation import Probe
from echo_plugin.phantom.scan_planes import WINDOWS, jittered_pose

FRAMES = 32
VIEWS = (View.A4C, View.PLAX_LV, View.PSAX_MV, View.SUBCOSTAL_4C)


def main() -> None:
    for view in VIEWS:
        rng = np.random.default_rng(0)
        heart = sample_heart(rng)
        probe = Probe.sample(rng, depth_mm=WINDOWS[view].depth * heart.size_mm, age_days=heart.age_days)
        width_mm = 2 * probe.depth_mm * np.sin(probe.half_angle_rad)
        scale = max(probe.depth_mm, width_mm) / 296
        probe = replace(probe, height=300, width=300, mm_per_px=scale, apex_x=150.0, apex_y=1.0)
        begin = time.process_time()
        acquisition = set_up(heart, jittered_pose(heart, view, rng), probe, rng)
        ready = time.process_time()
        record(acquisition, view, "standard", rng, FRAMES)
        done = time.process_time()
        scatterers = sum(len(s) for s in acquisition.tissue)
        sys.stdout.write(
            f"{view.value:8s} 300 x 300 px, {scatterers} scatterers: {FRAMES / (done - ready):5.1f} frames/s,"
            f" {FRAMES / (done - begin):5.1f} with {ready - begin:.2f} s of set-up for {FRAMES} frames\n"
        )


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Speed of the phantom"):
        main()
