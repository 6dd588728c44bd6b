# SPDX-License-Identifier: Apache-2.0
"""Septal boxes, defects and views of paediatric echocardiograms, as a MONAI Label app."""

__version__ = "0.2.0"
