# SPDX-License-Identifier: Apache-2.0
"""How long work says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how many are done, of how many, and a note for a person."""
