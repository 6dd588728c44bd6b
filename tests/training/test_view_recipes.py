# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop
from typer.testing import CliRunner

from echo_plugin.cli.main import app
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.network_config import ViewConfig
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.view_stages import mirrored, resized_crops, vary_as_usf_mae, view_recipe
from echo_plugin.training.views import view_config

CARD = ModelCard(
    "view_classifier",
    "1",
    "view",
    "",
    ("A4C", "A2C"),
    ViewConfig(2, input_size_px=32),
    TrainingCohort("nothing", 0, 0, ""),
)


def test_the_fetal_papers_numbers_are_the_preset():
    recipe, network = view_recipe(ViewOptions(recipe="usf-mae")), view_config(ViewOptions(recipe="usf-mae"), 5)

    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (5e-4, 0.01, 64, 120)
    assert (recipe.clip_norm, recipe.smoothing) == (1.0, 0.0)
    assert (network.backbone, network.input_size_px) == ("vit_base_patch16", 224)
    assert (network.temporal, network.frames_per_clip) == ("mean", 1)
    assert network.border > 0 and not network.is_standardised


def test_a_recipe_of_another_model_is_refused():
    with pytest.raises(ValueError, match="recipe is 'paper'; ours, usf-mae are accepted"):
        view_recipe(ViewOptions(recipe="paper"))


@given(st.integers(0, 10_000))
def test_crops_lie_in_the_picture_and_fill_the_square(seed):
    side = 64
    affines = resized_crops(50, side, torch.Generator().manual_seed(seed))

    inverse = torch.linalg.inv(affines[:, :, :2])
    first = -(inverse @ affines[:, :, 2:])[:, :, 0]
    last = first + side * inverse.diagonal(dim1=1, dim2=2)
    assert first.min() > -1e-3 and last.max() < side + 1e-3
    assert (affines[:, 0, 1] == 0).all() and (affines[:, 1, 0] == 0).all()


@pytest.mark.heavy
def test_crops_are_as_large_as_torchvisions():
    torch.manual_seed(0)
    scales = torch.linalg.det(resized_crops(4000, 64, torch.Generator().manual_seed(0))[:, :, :2])
    picture = torch.zeros(1, 64, 64)
    theirs = [RandomResizedCrop.make_params(_CROP, [picture]) for _ in range(4000)]
    areas = torch.tensor([float(p["height"] * p["width"]) for p in theirs]) / 64**2

    ours = torch.sort(1 / scales).values
    assert float((ours - torch.sort(areas).values).abs().max()) < 0.05


_CROP = RandomResizedCrop(64, scale=(0.5, 2.0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_frames_of_a_clip_are_changed_alike(seed):
    clip = torch.rand(1, 1, 32, 32).expand(2, 3, 32, 32)

    varied = vary_as_usf_mae(clip, torch.Generator().manual_seed(seed))

    assert torch.equal(varied[:, 0], varied[:, 1]) and torch.equal(varied[:, 0], varied[:, 2])
    assert not torch.equal(varied[0], varied[1])


def test_a_fetus_is_turned_and_mirrored_every_way():
    arrow = torch.zeros(400, 1, 33, 33)
    arrow[:, 0, 16, 16:] = 1.0  # from the middle to the right
    arrow[:, 0, 12:16, 16] = 1.0  # and a barb upwards, so that a mirror shows

    varied = vary_as_usf_mae(arrow, torch.Generator().manual_seed(0))[:, 0]

    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    mass = varied.sum(dim=(1, 2))
    quadrants = {
        (bool(x > 0), bool(y > 0))
        for x, y, m in zip((varied * columns).sum((1, 2)), (varied * rows).sum((1, 2)), mass, strict=True)
        if m > 5
    }
    assert len(quadrants) == 4


def test_half_the_clips_are_exchanged_left_and_right_where_that_is_asked_for():
    """A bright left half, in many draws of our recipe."""
    clips = torch.zeros(200, 1, 48, 48)
    clips[..., :24] = 0.8

    varied = view_recipe(ViewOptions(mirror=True)).vary(clips, torch.Generator().manual_seed(0))[:, 0]
    plain = view_recipe(ViewOptions()).vary(clips, torch.Generator().manual_seed(0))[:, 0]

    def on_the_left(pictures):
        left, right = pictures[:, 16:32, 12:20].mean(dim=(1, 2)), pictures[:, 16:32, 28:36].mean(dim=(1, 2))
        return float((left > right).float().mean())

    assert 0.4 < on_the_left(varied) < 0.6
    assert on_the_left(plain) > 0.97


def test_the_frames_of_a_clip_are_exchanged_together():
    clips = torch.rand(40, 1, 8, 8).expand(40, 3, 8, 8)

    exchanged = mirrored(clips, torch.Generator().manual_seed(0))

    is_flipped = [not torch.equal(a, b) for a, b in zip(exchanged, clips, strict=True)]
    assert 0 < sum(is_flipped) < 40
    assert all(torch.equal(a, b.flip(-1) if f else b) for a, b, f in zip(exchanged, clips, is_flipped, strict=True))


def test_frames_and_chunks_of_a_clip_can_be_asked_for():
    network = view_config(ViewOptions(frames_per_clip=8, chunks=2), 5)

    assert (network.frames_per_clip, network.chunks) == (8, 2)
    assert (view_config(ViewOptions(), 5).frames_per_clip, view_config(ViewOptions(), 5).chunks) == (4, 4)
    for options in ({"temporal": "image"}, {"recipe": "usf-mae"}):
        with pytest.raises(ValueError, match="frames_per_clip is 8; an image classifier looks at one frame"):
            ViewOptions(frames_per_clip=8, **options)
    with pytest.raises(ValueError, match="chunks is 0; a positive number or None is accepted"):
        ViewOptions(chunks=0)


def words_of(result):
    """Return what a command said, out of its frame and on one line."""
    return " ".join(result.output.replace("│", " ").split())


def test_the_command_line_asks_for_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "echo_plugin.cli.train._trainer", lambda what: lambda s, m, options, **_: asked.append(options) or CARD
    )
    words = ["train", "views", "--studies", str(tmp_path), "--models", str(tmp_path), "--from", "scratch"]

    done = CliRunner().invoke(app, [*words, "--clip-frames", "8", "--chunks", "2", "--mirror"])
    refused = CliRunner().invoke(app, [*words, "--chunks", "2", "--pooling", "gru"])
    of_detector = CliRunner().invoke(
        app, ["train", "detector", "--studies", str(tmp_path), "--models", str(tmp_path), "--mirror"]
    )

    assert done.exit_code == 0, done.output
    assert [(o.frames_per_clip, o.chunks, o.mirror) for o in asked] == [(8, 2, True)]
    assert refused.exit_code == of_detector.exit_code == 2
    assert "gru cuts nothing in chunks" in words_of(refused)
    assert "--mirror" in words_of(of_detector)
