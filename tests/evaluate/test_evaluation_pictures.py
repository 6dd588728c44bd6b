# SPDX-License-Identifier: Apache-2.0
import numpy as np

from echo_plugin.anatomy import DEFECTS, Defect, Septum
from echo_plugin.annotations import DefectPrediction, SeptalBox
from echo_plugin.cine import Cine, FramesInMemory, UltrasoundRegion
from echo_plugin.evaluate.report import embedded_picture


def test_text_beside_the_tissue_is_in_no_picture_of_what_was_embedded() -> None:
    pixels = np.full((1, 100, 100, 1), 255, dtype=np.uint8)  # a name may be burned in anywhere
    pixels[0, 20:60, 30:90] = 90
    cine = Cine("cine", FramesInMemory(pixels), regions=(UltrasoundRegion(30, 20, 90, 60),))
    crop = SeptalBox(0, 20.0, 10.0, 70.0, 60.0, Septum.INTERATRIAL, 0.9)
    share, angles = dict.fromkeys(DEFECTS, 1 / len(DEFECTS)), dict.fromkeys(DEFECTS, 60.0)

    picture = embedded_picture(cine, DefectPrediction(Defect.ASD, share, angles, (0,), (crop,)), 50)

    assert picture.max() == 90
    assert picture[:10].max() == picture[:, :10].max() == 0
