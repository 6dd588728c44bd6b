# SPDX-License-Identifier: Apache-2.0
"""Measuring a model on patients it never saw; nothing here can change an answer."""
