# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from torch import Tensor

from echo_plugin.answer.runtime import fold_batch_norms
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.models.backbones import BODIES, FaceResNet, build_body, face_file
from echo_plugin.models.body_weights import load_body
from echo_plugin.models.lean_torchvision import densenet121, resnet18

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)


def norm(name: str, width: int) -> dict[str, Tensor]:
    parts = {part: torch.rand(width) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.{part}": value for part, value in parts.items()} | {f"{name}.num_batches_tracked": torch.tensor(7)}


@pytest.fixture(scope="module")
def face_checkpoint() -> dict[str, Tensor]:
    """The names and shapes of a published ArcFace iresnet50, written down layer by layer."""
    state = {"conv1.weight": torch.randn(64, 3, 3, 3), **norm("bn1", 64), "prelu.weight": torch.rand(64)}
    width_in = 64
    for layer, (width, depth) in enumerate([(64, 3), (128, 4), (256, 14), (512, 3)], start=1):
        for block in range(depth):
            name = f"layer{layer}.{block}"
            state |= norm(f"{name}.bn1", width_in) | norm(f"{name}.bn2", width) | norm(f"{name}.bn3", width)
            state[f"{name}.conv1.weight"] = torch.full((width, width_in, 3, 3), 0.01)
            state[f"{name}.prelu.weight"] = torch.rand(width)
            state[f"{name}.conv2.weight"] = torch.full((width, width, 3, 3), block / 100)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = torch.randn(width, width_in, 1, 1) * 0.1
                state |= norm(f"{name}.downsample.1", width)
            width_in = width
    state |= norm("bn2", 512) | {"fc.weight": torch.full((512, 512 * 7 * 7), 0.01), "fc.bias": torch.rand(512)}
    return state | norm("features", 512)


@pytest.fixture(scope="module")
def grey_face_network() -> torch.nn.Module:
    return build_body("iresnet50")[0]


def test_a_published_face_checkpoint_loads_completely(face_checkpoint: dict[str, Tensor]) -> None:
    state = face_checkpoint
    network, width = build_body("iresnet50")

    load_body(network, state, "backbone.pth")

    loaded = network.state_dict()
    assert width is None
    assert set(loaded) == set(state)
    assert torch.equal(loaded["layer3.13.conv2.weight"], state["layer3.13.conv2.weight"])
    assert torch.equal(loaded["features.running_var"], state["features.running_var"])
    torch.testing.assert_close(loaded["conv1.weight"], state["conv1.weight"].sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.0.downsample.1.weight"), r"lacks 'layer2\.0\.downsample\.1\.weight', which the back"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.zeros(32, 64, 3, 3)}), r"'layer1\.0\.conv1\.weight' of sh"),
        (lambda s: s.update({"layer5.0.bn1.weight": torch.zeros(4)}), r"has 'layer5\.0\.bn1\.weight', which the back"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_its_first_wrong_key(
    change, message: str, face_checkpoint: dict[str, Tensor], grey_face_network: torch.nn.Module
) -> None:
    state = dict(face_checkpoint)
    change(state)

    with pytest.raises(ModelMismatchError, match=message):
        load_body(grey_face_network, state, "face.pth")


@pytest.mark.parametrize("side", [112, 224])
def test_the_face_network_takes_either_input_and_folding_its_norms_changes_nothing(side: int) -> None:
    network = FaceResNet((1, 1, 1, 1)).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    pictures = torch.randn(2, 3, side, side)

    with torch.no_grad():
        before = network(pictures)
        fold_batch_norms(network)
        after = network(pictures)

    assert before.shape == (2, 512)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "make"), [("resnet18", resnet18), ("densenet121", densenet121)])
def test_weights_made_for_colours_answer_alike_on_a_grey_picture(name: str, make) -> None:
    colour = make(weights=None).eval()
    grey, _ = build_body(name)
    load_body(grey, colour.state_dict(), "Weights")
    picture = torch.randn(1, 1, 64, 64)

    with torch.no_grad():
        setattr(colour, BODIES[name].head, torch.nn.Identity())
        expected, found = colour(picture.expand(1, 3, 64, 64)), grey.eval()(picture)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_body_takes_one_grey_channel(name: str) -> None:
    network, width = build_body(name)

    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, width or 512)


def test_absent_weights_are_named_with_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    with pytest.raises(ModelNotFoundError, match=r"Face-recognition weights are not on this machine; .*--from"):
        face_file("iresnet50")
    with pytest.raises(ModelNotFoundError, match=r"no face-recognition weights of resnet18; .* --backbone iresnet50"):
        face_file("resnet18")
