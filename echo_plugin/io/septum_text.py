# SPDX-License-Identifier: Apache-2.0
"""Which septum a free text names: labels that people and viewers put beside a box.

Only English words and the abbreviations of a heart report; what is not understood is UNSPECIFIED, never a guess.
"""

from __future__ import annotations

import re

from echo_plugin.anatomy import Septum

SHORT_NAMES: dict[Septum, str] = {
    Septum.INTERATRIAL: "IAS",
    Septum.INTERVENTRICULAR: "IVS",
    Septum.UNSPECIFIED: "septum",
}
"""The name of each wall as it is shown beside a box."""

_WORDS = re.compile(r"[a-z]+")
_INTERATRIAL = re.compile(r"ias|asd|(?:inter)?atri(?:al|um|a)(?:sept\w*)?")
_INTERVENTRICULAR = re.compile(r"ivs|vsd|(?:inter)?ventric(?:ular|le|les)(?:sept\w*)?")


def septum_named_in(text: str) -> Septum:
    """Return the septum that ``text`` names; UNSPECIFIED if it names none, or both.

    A defect names its wall (ASD: interatrial). Case, digits, hyphens and underscores do not matter.

    Examples
    --------
    >>> septum_named_in("IVS 0.88")
    <Septum.INTERVENTRICULAR: 'interventricular'>
    >>> septum_named_in("inter-atrial_2")
    <Septum.INTERATRIAL: 'interatrial'>
    >>> septum_named_in("atrioventricular junction")
    <Septum.UNSPECIFIED: 'unspecified'>
    """
    words = _WORDS.findall(text.lower())
    is_interatrial = any(_INTERATRIAL.fullmatch(word) for word in words)
    is_interventricular = any(_INTERVENTRICULAR.fullmatch(word) for word in words)
    if is_interatrial == is_interventricular:
        return Septum.UNSPECIFIED
    return Septum.INTERATRIAL if is_interatrial else Septum.INTERVENTRICULAR
