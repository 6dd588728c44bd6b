# SPDX-License-Identifier: Apache-2.0
"""The facts are those of the authors' code, run apart from ours (names, counts, patch order, positions, loss)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.models.masked_autoencoder import Drawn, MaskedAutoencoder, choose_patches, from_patches, to_patches
from echo_plugin.models.vit import sine_positions
from echo_plugin.network_config import MaeConfig

TINY = MaeConfig("vit_micro_patch8", 32, decoder_width=32, decoder_depth=1, decoder_heads=2, is_standardised=False)
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return MaskedAutoencoder(TINY).eval()


@pytest.fixture(scope="module")
def published_size():
    """The authors' largest part: only shapes, no memory."""
    with torch.device("meta"):
        return MaskedAutoencoder(MaeConfig(channels=3))


def test_the_published_size_has_the_published_number_of_parameters(published_size):
    parameters = list(published_size.parameters())

    assert sum(p.numel() for p in parameters) == 111_907_840
    assert sum(p.numel() for p in parameters if p.requires_grad) == 111_655_680


def test_keys_are_named_as_in_published_checkpoints(published_size):
    blocks = [f"blocks.{i}.{layer}" for i in range(12) for layer in BLOCK]
    blocks += [f"decoder_blocks.{i}.{layer}" for i in range(8) for layer in BLOCK]
    layers = ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred", *blocks]
    expected = {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
    expected |= {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}

    shapes = {key.removeprefix("encoder."): tuple(value.shape) for key, value in published_size.state_dict().items()}

    assert len(expected) == 254
    assert set(shapes) == expected
    assert shapes["pos_embed"] == (1, 197, 768)
    assert shapes["decoder_pos_embed"] == (1, 197, 512)
    assert shapes["decoder_pred.weight"] == (768, 512)


def test_the_defaults_are_the_authors():
    assert (MaeConfig().mask_ratio, MaeConfig().is_patch_normalised) == (0.75, False)
    assert (MaeConfig().decoder_width, MaeConfig().decoder_depth, MaeConfig().decoder_heads) == (512, 8, 16)


def test_a_patch_runs_by_row_column_channel():
    patches = to_patches(torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32), 16)

    assert patches.shape == (1, 4, 768)
    assert patches[0, 0, :6].tolist() == [0, 1024, 2048, 1, 1025, 2049]
    assert patches[0, 1, 0] == 16  # the second patch stands right of the first


@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 5))
def test_patches_go_back_to_the_frames(count, channels, side, patch):
    frames = torch.rand(count, channels, side * patch, side * patch)

    assert torch.equal(from_patches(to_patches(frames, patch), patch), frames)


def test_positions_have_the_column_first_and_zeros_for_the_class_token():
    positions = sine_positions(14, 768)

    assert positions.shape == (1, 197, 768)
    assert positions[0, 0].abs().max() == 0
    assert positions[0, 2, :2].tolist() == pytest.approx([0.84147, 0.81525], abs=1e-5)


def test_positions_of_three_quarters_are_refused():
    with pytest.raises(ValueError, match="a multiple of 4 is accepted"):
        sine_positions(4, 30)


def test_a_quarter_of_the_patches_is_seen():
    kept, places, mask = choose_patches(torch.rand(5, 196), 0.75)

    assert kept.shape == (5, 49)
    assert mask.sum(dim=1).tolist() == [147] * 5
    assert torch.equal(places.sort(dim=1).values, torch.arange(196).expand(5, -1))


def test_the_patches_with_the_least_noise_are_kept():
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.2]])

    kept, _, mask = choose_patches(noise, 0.5)

    assert kept.tolist() == [[1, 3]]
    assert mask.tolist() == [[1, 0, 1, 0]]


@settings(max_examples=20, deadline=None)
@given(st.booleans(), st.integers(0, 1000))
def test_the_loss_is_the_mean_square_over_hidden_pixels(is_patch_normalised, seed):
    generator = torch.Generator().manual_seed(seed)
    config = MaeConfig(**{**vars(TINY), "is_patch_normalised": is_patch_normalised})
    model = MaskedAutoencoder(config)
    frames = torch.rand(2, 1, 32, 32, generator=generator)
    drawn = torch.rand(2, 16, 64, generator=generator)
    mask = (torch.rand(2, 16, generator=generator) < 0.6).float()
    mask[0, 0] = 1

    errors = []
    for frame in range(2):
        for patch in range(16):
            if mask[frame, patch]:
                row, column = patch // 4 * 8, patch % 4 * 8
                true = frames[frame, 0, row : row + 8, column : column + 8].reshape(-1)
                if is_patch_normalised:
                    true = (true - true.mean()) / (true.var(correction=1) + 1e-6) ** 0.5
                errors.append(((drawn[frame, patch] - true) ** 2).mean())

    assert float(model.loss(frames, Drawn(drawn, mask))) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


@torch.no_grad()
def test_what_is_seen_does_not_count_in_the_loss(tiny):
    frames, noise = torch.rand(2, 1, 32, 32), torch.rand(2, 16)
    drawn = tiny(frames, noise)
    spoiled = drawn.patches + 100 * (1 - drawn.mask)[:, :, None]

    assert float(tiny.loss(frames, Drawn(spoiled, drawn.mask))) == pytest.approx(float(tiny.loss(frames, drawn)))


def test_hidden_patches_cannot_be_seen(tiny):
    frames, noise = torch.rand(1, 1, 32, 32), torch.rand(1, 16)
    hidden = choose_patches(noise, 0.75)[2]
    others = torch.where(
        from_patches(hidden[:, :, None].expand(-1, -1, 64), 8).bool(), torch.rand(1, 1, 32, 32), frames
    )

    assert torch.equal(tiny(frames, noise).patches, tiny(others, noise).patches)
    assert not torch.equal(tiny(frames, noise).patches, tiny(1 - frames, noise).patches)


def test_every_drawn_patch_stands_in_its_place(tiny):
    """Frames moved by nothing, noise permuted: with all patches seen, the order of shuffling does not matter."""
    frames = torch.rand(1, 1, 32, 32)
    first, second = (choose_patches(torch.rand(1, 16), 0.0) for _ in range(2))

    with torch.no_grad():
        one, two = (tiny.decode(tiny.encode(frames, kept), places) for kept, places, _ in (first, second))

    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_the_encoder_that_sees_all_is_timms(tiny):
    frames = torch.rand(2, 1, 32, 32)

    with torch.no_grad():
        ours = tiny.encode(frames, torch.arange(16).expand(2, -1))
        timms = tiny.encoder.forward_features(frames)

    torch.testing.assert_close(ours, timms, atol=1e-5, rtol=1e-4)


@pytest.mark.heavy
def test_it_learns_to_draw():
    torch.manual_seed(0)
    model = MaskedAutoencoder(TINY)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ramps = torch.linspace(-1, 1, 32).expand(8, 1, 32, 32) * torch.linspace(-1, 1, 8)[:, None, None, None]
    noise = torch.rand(8, 16)
    first = model.loss(ramps, model(ramps, noise)).item()

    for _ in range(40):
        loss = model.loss(ramps, model(ramps, noise))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert loss.item() < 0.4 * first


@pytest.mark.parametrize("mask_ratio", [0.9375, 0.0625, 0.001])
def test_one_patch_seen_and_one_hidden_are_enough(mask_ratio):
    torch.manual_seed(0)
    model = MaskedAutoencoder(MaeConfig(**{**vars(TINY), "mask_ratio": mask_ratio}))
    frames = torch.rand(2, 1, 32, 32)

    assert torch.isfinite(model.loss(frames, model(frames, torch.rand(2, 16))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask_ratio": 1.0}, "between 0 and 1 is accepted"),
        ({"mask_ratio": 0.94}, "mask_ratio 0.94 of 16 patches; one that leaves at least one patch seen"),
        ({"mask_ratio": 1e-18}, "of 16 patches; one that leaves at least one patch seen and one hidden"),
        ({"channels": 2}, "1 \\(grey\\) or 3 \\(RGB\\)"),
        ({"decoder_width": 36, "decoder_heads": 8}, "a multiple of 4 times the heads"),
        ({"backbone": "vit_huge"}, "vit_base_patch16, .* are accepted"),
        ({"input_size_px": 33}, "a multiple of its patch, 8 px"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        MaeConfig(**{**vars(TINY), **wrong})
