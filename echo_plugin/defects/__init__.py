# SPDX-License-Identifier: Apache-2.0
"""Defects: from the crops of a septum to an answer, its evidence and its measurement."""
