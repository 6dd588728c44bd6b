# SPDX-License-Identifier: Apache-2.0
"""A parametric beating heart, imaged by a convolution ultrasound model and labelled by construction.

heart, chambers, motion, valves: what beats; scan_planes, scatterers, speckle, bmode: how it is imaged;
machine, overlay, ecg, dicom_writer, study: how it is stored.
"""
