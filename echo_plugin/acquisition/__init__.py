# SPDX-License-Identifier: Apache-2.0
"""Whom to ask what next: scores of cines that nobody labelled, choices among them, doubts about labels there are.

Scores are made ahead of time (`score_folder`) and kept (`score_store`); a choice (`strategies`) only reads them.
"""
