# SPDX-License-Identifier: Apache-2.0
"""Frames of patients that a training leaves behind are its user's alone to read."""

import os

import pytest
import torch

from echo_plugin.models.masked_autoencoder import MaskedAutoencoder
from echo_plugin.network_config import MaeConfig
from echo_plugin.training.mae import write_reconstructions

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")


@pytest.fixture(autouse=True)
def open_umask():
    """A machine on which new files are readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def are_private(paths):
    return [path.stat().st_mode & 0o777 for path in paths] == [0o600] * len(paths)


def test_pictures_of_what_is_drawn_are_private(tmp_path):
    model = MaskedAutoencoder(MaeConfig("vit_micro_patch8", 32, decoder_width=32, decoder_depth=1, decoder_heads=2))

    write_reconstructions(model, torch.rand(1, 1, 32, 32), torch.rand(1, 16), tmp_path / "reconstructions" / "a.png")

    assert are_private(list((tmp_path / "reconstructions").iterdir()))
