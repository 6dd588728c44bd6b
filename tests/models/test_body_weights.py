# SPDX-License-Identifier: Apache-2.0
"""Files of weights that others made, whatever wraps them, and networks that begin with them."""

import argparse
from pathlib import Path

import pytest
import torch

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.models.backbones import build_body
from echo_plugin.models.body_weights import load_body, read_weights
from echo_plugin.models.lean_torchvision import densenet121
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig

torch.set_num_threads(1)
WEIGHT = torch.rand(2, 3)


@pytest.mark.parametrize(
    "content",
    [
        {"fc.weight": WEIGHT},
        {"state_dict": {"module.fc.weight": WEIGHT}, "epoch": 3},
        {"model": {"fc.weight": WEIGHT}, "args": argparse.Namespace(mask_ratio=0.75, output_dir="out", gpu=None)},
    ],
    ids=["bare", "of parallel training", "of a masked autoencoder's training"],
)
def test_weights_are_read_whatever_is_kept_beside_them(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "a.pth")

    weights, words = read_weights(tmp_path / "a.pth")

    assert list(weights) == ["fc.weight"]
    assert torch.equal(weights["fc.weight"], WEIGHT)
    assert words.startswith("a.pth (sha256 ")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}], ids=str)
def test_a_file_without_weights_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "list.pth")

    with pytest.raises(ModelMismatchError, match=r"list\.pth holds no dictionary of named tensors; .* accepted"):
        read_weights(tmp_path / "list.pth")


@pytest.mark.parametrize("name", ["notes.pth", "empty.pth", "folder.pth"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.pth").write_text("these are words")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder.pth").mkdir()

    with pytest.raises(ModelMismatchError, match=rf"{name} cannot be read as weights by name \(.+\); a torch"):
        read_weights(tmp_path / name)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"absent\.pth does not exist; name a torch checkpoint"):
        read_weights(tmp_path / "absent.pth")


@pytest.mark.heavy
def test_densenet_begins_with_the_names_that_torchvision_files_still_have() -> None:
    published = densenet121(weights=None).state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in published.items()}
    network, _ = build_body("densenet121")

    load_body(network, old, "Weights")

    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    name = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(network.state_dict()[name], published[name])


@pytest.mark.heavy
def test_one_file_is_a_beginning_of_defects_and_of_views_alike() -> None:
    from torchvision.models import resnet18

    published = resnet18(weights=None).state_dict()
    ours = [build_body("resnet18")[0], ViewClassifier(ViewConfig(5, backbone="resnet18")).backbone]

    for body in ours:
        load_body(body, published, "Weights")

    first, second = (body.state_dict() for body in ours)
    assert all(torch.equal(second[key], value) for key, value in first.items())


def test_nothing_is_loaded_of_weights_that_do_not_fit() -> None:
    network, _ = build_body("resnet18")
    before = {key: value.clone() for key, value in network.state_dict().items()}

    with pytest.raises(ModelMismatchError, match=r"lacks 'bn1\.weight', which the backbone has; use its backbone"):
        load_body(network, {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "Weights")

    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
