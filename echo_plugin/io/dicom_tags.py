# SPDX-License-Identifier: Apache-2.0
"""The elements of a DICOM header that are read; everything else, names and private elements above all, is skipped."""

from __future__ import annotations

_IDENTITY = (
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "HeartRate",
)
_REGIONS_AND_TIMES = (
    "SequenceOfUltrasoundRegions",
    "FrameTime",
    "FrameTimeVector",
    "FrameIncrementPointer",
    "CineRate",
)
_PIXELS = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
)
_DISPLAY = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelSpacing",
    "PixelAspectRatio",
    *(
        f"{kind}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)
TAGS_READ = (*_IDENTITY, *_REGIONS_AND_TIMES, *_PIXELS, *_DISPLAY)
"""DICOM keywords."""
