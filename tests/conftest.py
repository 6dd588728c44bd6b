# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all rooms."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The directory of real ultrasound files beside the checkout; skipped, visibly, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real ultrasound files beside the checkout (../shared/data)")
    return SHARED_DATA
