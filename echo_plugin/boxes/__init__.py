# SPDX-License-Identifier: Apache-2.0
"""Septal boxes: linking them over time, matching them to truth, and measuring them."""
