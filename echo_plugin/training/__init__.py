# SPDX-License-Identifier: Apache-2.0
"""Learning: splits by patient, data sets, augmentation, the epoch loop and a trainer for each task."""
