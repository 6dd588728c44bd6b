# SPDX-License-Identifier: Apache-2.0
"""Annotated cines for other programs and other people: never with anybody's identity in them."""
