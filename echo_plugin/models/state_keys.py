# SPDX-License-Identifier: Apache-2.0
"""Weights fit a network as a whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from echo_plugin.errors import ModelMismatchError


def require_fitting(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str, network: str, hint: str = ""
) -> None:
    """Raise unless ``given`` has the names and shapes of ``expected``, and no others.

    Parameters
    ----------
    source, network
        What the weights, and what they are for, are called.
    hint
        What to do, after the reason.

    Raises
    ------
    ModelMismatchError
        Naming the first key that is missing, of another shape, or unknown.
    """
    for key, value in expected.items():
        if key not in given:
            msg = f"{source} lacks {key!r}, which {network} has{hint}."
            raise ModelMismatchError(msg)
        if given[key].shape != value.shape:
            found, wanted = tuple(given[key].shape), tuple(value.shape)
            msg = f"{source} has {key!r} of shape {found}; {network} takes {wanted}{hint}."
            raise ModelMismatchError(msg)
    for key in given:
        if key not in expected:
            msg = f"{source} has {key!r}, which {network} lacks{hint}."
            raise ModelMismatchError(msg)
