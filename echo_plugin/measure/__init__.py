# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of results: boxes, classes, verification and their intervals. Reads no file, knows no network."""
