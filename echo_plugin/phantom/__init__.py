# SPDX-License-Identifier: Apache-2.0
"""A parametric beating heart, imaged by a convolution ultrasound model and labelled by construction.

heart, patient, chambers, motion: what beats; scan_planes, scatterers, image_formation, bmode: how it is imaged;
screen, dicom_writer, study: how it is stored.
"""
