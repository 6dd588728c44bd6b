# SPDX-License-Identifier: Apache-2.0
"""The doors of the server, one file each: 3D Slicer, the panel, DICOMweb, the archive, the viewer."""
