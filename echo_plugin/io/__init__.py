# SPDX-License-Identifier: Apache-2.0
"""Files in and out: DICOM, video, volumes, Slicer markups, study folders. Knows no model and no torch."""
