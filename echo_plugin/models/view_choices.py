# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about the view classifier, by name. Imports nothing: the command line asks it at once."""

from __future__ import annotations

from typing import Literal, get_args

TemporalHead = Literal["weave", "gru", "attention", "mean"]
"""What is made of the frames of a clip; ``ViewConfig.temporal`` says what each does."""
Sampling = Literal["consecutive", "spaced"]
"""Which frames make a clip; ``ViewConfig.sampling`` says what each does."""

TEMPORAL_HEADS: tuple[str, ...] = get_args(TemporalHead)
SAMPLINGS: tuple[str, ...] = get_args(Sampling)
