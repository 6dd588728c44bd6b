# SPDX-License-Identifier: Apache-2.0
"""A study folder of easy stills with a detector that has seen none of its patients."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def strange_studies(easy_studies: Path, tmp_path: Path) -> Path:
    """The easy studies with other patients than those the published detector learned from."""
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    for path in root.glob(".echo_*"):
        path.unlink()
    csv = root / "patients.csv"
    csv.write_text(csv.read_text().replace(",child", ",stranger"))
    return root
