# SPDX-License-Identifier: Apache-2.0
"""From a cine to what a clinic is told: view, septal boxes, defect and past cases."""
