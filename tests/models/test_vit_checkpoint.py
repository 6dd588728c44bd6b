# SPDX-License-Identifier: Apache-2.0
import ast
from pathlib import Path

import pytest
import torch

from echo_plugin.answer.preprocess import GREY_MEAN, GREY_STD
from echo_plugin.errors import ModelMismatchError
from echo_plugin.models.masked_autoencoder import MaskedAutoencoder
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.models.vit import IMAGENET_MEAN, IMAGENET_STD, build_vit, load_vit, resized_positions
from echo_plugin.network_config import MaeConfig, ViewConfig

GREY = (GREY_MEAN, GREY_STD)
NAME = "vit_micro_patch8"
PACKAGE = Path(__file__).resolve().parents[2] / "echo_plugin"


@pytest.fixture(scope="module")
def published():
    """A small checkpoint with exactly the names of the published ones: RGB encoder, decoder beside it."""
    torch.manual_seed(1)
    config = MaeConfig(NAME, 32, channels=3, decoder_width=32, decoder_depth=2, decoder_heads=2)
    state = MaskedAutoencoder(config).state_dict()
    return {key.removeprefix("encoder."): value for key, value in state.items()}


def test_grey_frames_get_what_the_published_encoder_says_of_them(published):
    colour, grey = build_vit(NAME, 32, channels=3).eval(), build_vit(NAME, 32).eval()
    load_vit(colour, published, "A", GREY)
    load_vit(grey, published, "A", GREY)
    levels = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))

    with torch.no_grad():
        as_published = colour((levels.expand(-1, 3, -1, -1) - mean) / std)
        ours = grey((levels - GREY_MEAN) / GREY_STD)

    torch.testing.assert_close(ours, as_published, atol=1e-4, rtol=1e-4)


def test_all_of_the_encoder_is_loaded(published):
    vit = build_vit(NAME, 32, channels=3)

    load_vit(vit, published, "A", GREY)

    assert all(torch.equal(value, published[key]) for key, value in vit.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.3.mlp.fc1.weight"), "File x lacks 'blocks.3.mlp.fc1.weight'"),
        (lambda s: s.update({"head.weight": torch.ones(2)}), "File x has 'head.weight', which the encoder lacks"),
        (
            lambda s: s.update({"norm.weight": torch.ones(7)}),
            r"'norm.weight' of shape \(7,\); the encoder takes \(128,",
        ),
        (lambda s: s.update({"pos_embed": torch.ones(1, 18, 128)}), r"'pos_embed' of shape \(1, 18, 128\)"),
        (lambda s: (s.clear(), s.update({"conv1.weight": torch.ones(1)})), "lacks 'cls_token'"),
    ],
)
def test_a_wrong_file_is_refused_by_its_first_wrong_key_and_nothing_is_loaded(published, change, message):
    state, vit = dict(published), build_vit(NAME, 32)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    change(state)

    with pytest.raises(ModelMismatchError, match=message):
        load_vit(vit, state, "File x", GREY)

    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())


def test_a_larger_picture_gets_positions_between_those_learned(published):
    vit = build_vit(NAME, 64)

    load_vit(vit, published, "A", GREY)

    assert vit.pos_embed.shape == (1, 65, 128)
    assert torch.equal(vit.pos_embed[:, 0], published["pos_embed"][:, 0])
    assert vit.pos_embed.abs().max() < 1.5


def test_positions_of_a_ramp_stay_a_ramp():
    columns = torch.arange(4.0).expand(4, 4).reshape(16, 1)
    ramp = torch.cat([torch.zeros(1, 1), columns])[None]

    larger = resized_positions(ramp, 65)[0, 1:, 0].reshape(8, 8)

    assert torch.all(larger.diff(dim=1)[:, 1:-1] > 0)
    torch.testing.assert_close(larger, larger[:1].expand(8, -1))


def test_a_transformer_is_a_frame_encoder_of_the_view_classifier():
    model = ViewClassifier(ViewConfig(5, backbone=NAME, input_size_px=32)).eval()
    clips = torch.randn(2, 4, 1, 32, 32)

    with torch.no_grad():
        together = model(clips)
        alone = torch.cat([model(clip[None]) for clip in clips])

    assert together.shape == (2, 5)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_the_border_is_not_looked_at():
    config = ViewConfig(5, backbone=NAME, input_size_px=32, border=0.125, temporal="mean", frames_per_clip=1)
    model = ViewClassifier(config).eval()
    frames = torch.randn(1, 1, 32, 32)
    marked = frames.clone()
    marked[..., :4, :] = 9.0
    marked[..., :, -4:] = 9.0
    inside = frames.clone()
    inside[..., 4, 4] = 9.0

    with torch.no_grad():
        answers = [model.features(each) for each in (frames, marked, inside)]

    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_a_border_of_all_is_refused():
    with pytest.raises(ValueError, match=r"0 to 0.4 of the side is accepted"):
        ViewConfig(5, border=0.5)


@pytest.mark.heavy
def test_predictions_do_not_wait_for_timm():
    for path in PACKAGE.rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:  # of the module itself, not of a function
            names = [alias.name for alias in getattr(statement, "names", [])] + [getattr(statement, "module", "")]
            assert not any(name.split(".")[0] == "timm" for name in names if name), f"{path} imports timm at once"
