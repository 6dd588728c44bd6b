# SPDX-License-Identifier: Apache-2.0
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from echo_plugin.models.view_classifier import ViewClassifier, consecutive_frames, sample_clips, spaced_frames, weave
from echo_plugin.network_config import ViewConfig

PUBLISHED_SAMPLES = {  # frame numbers, 1-based, of the authors' own sampler
    4: ([1, 2, 3, 4], [1, 2, 3, 4]),
    5: ([1, 2, 4, 5], [2, 3, 4, 5]),
    10: ([2, 4, 7, 9], [4, 5, 6, 7]),
    25: ([4, 10, 16, 22], [12, 13, 14, 15]),
    30: ([4, 12, 19, 27], [14, 15, 16, 17]),
    31: ([4, 12, 20, 28], [15, 16, 17, 18]),
    60: ([8, 23, 38, 53], [29, 30, 31, 32]),
    120: ([16, 46, 76, 106], [59, 60, 61, 62]),
}


@pytest.mark.parametrize("frame_count", PUBLISHED_SAMPLES)
def test_frames_are_sampled_as_published(frame_count: int) -> None:
    spaced, consecutive = PUBLISHED_SAMPLES[frame_count]

    assert (spaced_frames(frame_count) + 1).tolist() == spaced
    assert (consecutive_frames(frame_count)[0] + 1).tolist() == consecutive


@pytest.mark.parametrize("frame_count", range(4, 121))
def test_frames_are_sampled_by_the_published_rule(frame_count: int) -> None:
    """The rule as its authors state it: S segments of F frames, starts int(d / 2 + d x) with d = (N - F + 1) / S."""

    def starts(segments: int, length: int) -> list[int]:
        d = (frame_count - length + 1) / segments
        return [int(d / 2 + d * x) for x in range(segments)]

    assert spaced_frames(frame_count).tolist() == starts(4, 1)
    first = starts(1, 4)[0]
    assert consecutive_frames(frame_count).tolist() == [[first, first + 1, first + 2, first + 3]]


@pytest.mark.parametrize("frame_count", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("sampling", ["consecutive", "spaced"])
@pytest.mark.parametrize("seed", [None, 5])
def test_sampled_frames_are_in_the_cine_and_in_order(frame_count: int, sampling: str, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)

    clips = sample_clips(ViewConfig(classes=2, sampling=sampling), frame_count, 3, rng)

    assert clips.shape == (3, 4)
    assert clips.min() >= 0
    assert clips.max() < frame_count
    assert (np.diff(clips, axis=1) >= 0).all()


def test_weaving_has_the_published_digest() -> None:
    features = torch.arange(4 * 3 * 2048).reshape(4, 3, 2048).transpose(0, 1)  # (B=3, T=4, D=2048)

    woven = weave(features, 4)

    assert woven.shape == (3, 4, 2048)
    assert woven[0, 0, 512] == features[0, 1, 0]
    assert woven[1, 2, 600] == features[1, 1, 1112]
    assert woven[2, 3, 2047] == features[2, 3, 2047]
    digest = hashlib.sha256(np.ascontiguousarray(woven.numpy().astype("<i8")).tobytes()).hexdigest()
    assert digest == "971fdd33e0e4ef497571cd9098a52ebefd6fa5b65728e1b8e50d74d10742639d"


def test_weaving_equals_the_loop_of_the_paper() -> None:
    features = torch.randn(2, 5, 12)

    loop = torch.stack([torch.cat([features[:, t, k * 4 : k * 4 + 4] for t in range(5)], dim=1) for k in range(3)], 1)

    assert torch.equal(weave(features, 3), loop)


def test_features_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="10 values cannot be woven in 4 chunks"):
        weave(torch.zeros(1, 4, 10), 4)


@pytest.mark.heavy
def test_paper_configuration_has_the_published_number_of_parameters() -> None:
    network = ViewClassifier(ViewConfig(classes=12, backbone="resnet50"))

    own_frame_head = sum(p.numel() for p in network.frame_head.parameters())
    frame_head_of_24_classes = 2048 * 24 + 24  # the authors' network carries one that it never uses
    assert sum(p.numel() for p in network.parameters()) - own_frame_head + frame_head_of_24_classes == 29_916_132


@pytest.mark.heavy
def test_attention_adds_what_the_paper_says() -> None:
    network = ViewClassifier(ViewConfig(classes=12, backbone="resnet50", temporal="attention"))

    attention = sum(p.numel() for p in network.attention.attention.parameters())
    assert network.attention.width == 512
    assert attention == 4 * 512 * 512 + 4 * 512  # "an extra 1 million parameters"
    assert network.attention.widen.weight.shape == (2048, 512)


@pytest.mark.heavy
def test_image_classifier_is_the_mean_over_clips_of_one_frame() -> None:
    torch.manual_seed(0)
    network = ViewClassifier(ViewConfig(classes=5, temporal="mean", frames_per_clip=1)).eval()
    frames = torch.randn(2, 1, 48, 48)

    with torch.inference_mode():
        torch.testing.assert_close(network(frames[:, None]).softmax(1), network.frame_logits(frames).softmax(1))


@pytest.mark.parametrize("temporal", ["weave", "attention"])
def test_embeddings_that_cannot_be_cut_are_refused(temporal: str) -> None:
    with pytest.raises(ValueError, match="512 values cannot be cut in 3 chunks"):
        ViewClassifier(ViewConfig(classes=3, temporal=temporal, chunks=3))


def test_chunks_too_narrow_for_the_heads_of_attention_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"256 chunks of 512 values are too narrow for attention; a divisor of 128 works"
    ):
        ViewClassifier(ViewConfig(classes=3, temporal="attention", chunks=256))

    assert ViewClassifier(ViewConfig(classes=3, temporal="attention", chunks=128)).attention.width == 4


@pytest.mark.heavy
@pytest.mark.parametrize("temporal", ["weave", "gru", "mean", "attention"])
def test_clip_batch_equals_single_clips(temporal: str) -> None:
    torch.manual_seed(0)
    network = ViewClassifier(ViewConfig(classes=5, temporal=temporal, frames_per_clip=3, chunks=2)).eval()
    clips = torch.randn(2, 3, 1, 48, 48)

    with torch.inference_mode():
        together = network(clips)
        alone = torch.cat([network(clip[None]) for clip in clips])

    assert together.shape == (2, 5)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.heavy
def test_weaving_knows_the_order_of_frames_and_mean_does_not() -> None:
    torch.manual_seed(0)
    clip = torch.randn(1, 4, 1, 48, 48)
    woven = ViewClassifier(ViewConfig(classes=5)).eval()
    mean = ViewClassifier(ViewConfig(classes=5, temporal="mean")).eval()

    with torch.inference_mode():
        assert not torch.allclose(woven(clip), woven(clip.flip(1)), atol=1e-6)
        np.testing.assert_allclose(mean(clip), mean(clip.flip(1)), rtol=1e-4, atol=1e-5)


def test_first_stage_trains_the_backbone_that_the_second_uses() -> None:
    network = ViewClassifier(ViewConfig(classes=5))

    nn.functional.cross_entropy(network.frame_logits(torch.randn(2, 1, 48, 48)), torch.tensor([0, 1])).backward()

    assert network.backbone.fc.weight.grad.abs().sum() > 0
    assert network.gru.weight_ih_l0.grad is None


def test_unknown_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling 'random'"):
        ViewConfig(classes=3, sampling="random")
