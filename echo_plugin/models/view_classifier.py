# SPDX-License-Identifier: Apache-2.0
"""The view classifier: a few frames of a cine -> the standard view, by temporal feature weaving and a GRU.

Implements the neonatal-view paper (ISBI 2025) from its description: a ResNet embeds every frame, the embeddings are
cut in chunks, equal chunks of all frames are joined, and a GRU reads chunk after chunk. It is trained in two stages:
first ``frame_logits`` on single frames, then everything on clips.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from echo_plugin.models.backbones import standardise
from echo_plugin.models.lean_torchvision import resnet18, resnet50
from echo_plugin.models.vit import build_vit
from echo_plugin.network_config import VITS, ViewConfig

RESNETS = {"resnet18": resnet18, "resnet50": resnet50}
ATTENTION_HEADS = 4


def clip_starts(frame_count: int, clips: int, length: int, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Return the (clips,) first frames, 0-based ascending, of clips spread evenly over a cine.

    Without ``rng`` the clips sit in the middle of equal segments; with it each starts anywhere in its segment.
    """
    room = max(frame_count - length + 1, 1)
    segment = np.arange(clips)
    if rng is None:
        return (room / clips / 2 + room / clips * segment).astype(np.int64)
    width = room // clips
    if width > 0:
        return segment * width + rng.integers(width, size=clips)
    return np.sort(rng.integers(room, size=clips))


def consecutive_frames(
    frame_count: int, clips: int = 1, length: int = 4, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Return (clips, length) 0-based indices of neighbouring frames; a short cine repeats its last frame.

    >>> consecutive_frames(30).tolist()
    [[13, 14, 15, 16]]
    """
    starts = clip_starts(frame_count, clips, length, rng)
    return np.minimum(starts[:, None] + np.arange(length), frame_count - 1)


def spaced_frames(frame_count: int, length: int = 4, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Return (length,) 0-based indices spread over the whole cine, one from each of ``length`` equal segments.

    >>> spaced_frames(30).tolist()
    [3, 11, 18, 26]
    """
    return np.minimum(clip_starts(frame_count, length, 1, rng), frame_count - 1)


def sample_clips(
    config: ViewConfig, frame_count: int, clips: int = 1, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Return (clips, T) 0-based frame indices of clips as the classifier was taught to see them.

    With ``rng`` they are random, for training; without, evenly spread and always the same.
    """
    T = config.frames_per_clip
    if config.sampling == "consecutive":
        return consecutive_frames(frame_count, clips, T, rng)
    if rng is not None:
        return np.stack([spaced_frames(frame_count, T, rng) for _ in range(clips)])
    return spaced_frames(frame_count, clips * T).reshape(T, clips).T


def weave(features: Tensor, chunks: int) -> Tensor:
    """Return (B, K, T*D/K): chunk k of every frame, side by side in time order.

    ``features`` : (B, T, D) with D divisible by ``chunks`` = K. Step k holds the same D/K features over time.
    """
    B, T, D = features.shape
    if D % chunks:
        msg = f"Features of {D} values cannot be woven in {chunks} chunks; a divisor of {D} is accepted."
        raise ValueError(msg)
    return features.reshape(B, T, chunks, D // chunks).transpose(1, 2).reshape(B, chunks, T * D // chunks)


class ChunkAttention(nn.Module):
    """Logits of (B, T, D) embeddings: their T x K chunks, each of D/K values, attend to one another.

    The paper's comparison: four frames of 2048 values as 16 chunks of 512, four heads, a layer 512 to 2048, the views.
    What it does between is not said; here the chunks are averaged, and a ReLU stands before the last layer.
    """

    def __init__(self, embedding: int, config: ViewConfig) -> None:
        super().__init__()
        self.width = embedding // config.chunks
        self.attention = nn.MultiheadAttention(self.width, ATTENTION_HEADS, batch_first=True)
        self.widen = nn.Linear(self.width, embedding)
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(config.head_dropout), nn.Linear(embedding, config.classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, K) logits of (B, T, D) embeddings."""
        chunks = features.reshape(len(features), -1, self.width)
        attended, _ = self.attention(chunks, chunks, chunks, need_weights=False)
        logits: Tensor = self.head(self.widen(attended.mean(dim=1)))
        return logits


def _grey_resnet(config: ViewConfig) -> tuple[nn.Module, int]:
    """Return the paper's encoder of grey frames, and the width D of its embeddings."""
    resnet = RESNETS[config.backbone](weights=None)
    resnet.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    D = resnet.fc.in_features
    resnet.maxpool = nn.Sequential(resnet.maxpool, nn.Dropout(config.stem_dropout))
    resnet.fc = nn.Linear(D, D)  # no activation after it
    return resnet, D


def _without_border(frames: Tensor, border: float) -> Tensor:
    """Return (N, 1, S, S) frames of which the part ``border`` of the side is cut off all round, at their old size."""
    S = frames.shape[-1]
    cut = round(S * border)
    middle = frames[..., cut : S - cut, cut : S - cut]
    return interpolate(middle, (S, S), mode="bilinear", align_corners=False)


class ViewClassifier(nn.Module):
    """View logits of (B, T, 1, S, S) clips, T = ``frames_per_clip``, from ``preprocess.normalise``."""

    def __init__(self, config: ViewConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: nn.Module
        if config.backbone in VITS:
            self.backbone, D = build_vit(config.backbone, config.input_size_px), VITS[config.backbone].width
        else:
            self.backbone, D = _grey_resnet(config)
        if config.temporal in ("weave", "attention") and D % config.chunks:
            msg = f"Embeddings of {D} values cannot be cut in {config.chunks} chunks; a divisor of {D} is accepted."
            raise ValueError(msg)
        if config.temporal == "attention" and D // config.chunks % ATTENTION_HEADS:
            widest = D // ATTENTION_HEADS
            msg = f"{config.chunks} chunks of {D} values are too narrow for attention; a divisor of {widest} works."
            raise ValueError(msg)
        self.frame_head = nn.Linear(D, config.classes)
        if config.temporal == "attention":
            self.attention = ChunkAttention(D, config)
        if config.temporal in ("weave", "gru"):
            woven = config.frames_per_clip * D // config.chunks
            self.gru = nn.GRU(
                woven if config.temporal == "weave" else D,
                config.gru_size,
                config.gru_layers,
                batch_first=True,
                dropout=config.gru_dropout if config.gru_layers > 1 else 0.0,
            )
            self.head = nn.Sequential(nn.Dropout(config.head_dropout), nn.Linear(config.gru_size, config.classes))

    def features(self, frames: Tensor) -> Tensor:
        """Return the (N, D) embeddings of single frames (N, 1, S, S)."""
        if self.config.border:
            frames = _without_border(frames, self.config.border)
        embeddings: Tensor = self.backbone(standardise(frames) if self.config.is_standardised else frames)
        return embeddings

    def frame_logits(self, frames: Tensor) -> Tensor:
        """Return the (N, K) logits of single frames (N, 1, S, S): the classifier of the first training stage."""
        logits: Tensor = self.frame_head(self.features(frames))
        return logits.float()

    def clip_features(self, clips: Tensor) -> Tensor:
        """Return the (B, T, D) embeddings of the frames of clips (B, T, 1, S, S)."""
        return self.features(clips.flatten(0, 1)).reshape(*clips.shape[:2], -1)

    def clip_logits(self, features: Tensor) -> Tensor:
        """Return the (B, K) logits of clips by the embeddings of their frames (B, T, D)."""
        if self.config.temporal == "mean":
            logits: Tensor = self.frame_head(features).float()
            return logits.softmax(dim=2).mean(dim=1).clamp_min(1e-12).log()
        if self.config.temporal == "attention":
            attended: Tensor = self.attention(features)
            return attended.float()
        steps = weave(features, self.config.chunks) if self.config.temporal == "weave" else features
        states, _ = self.gru(steps)
        answer: Tensor = self.head(states[:, -1])
        return answer.float()

    def forward(self, clips: Tensor) -> Tensor:
        """Return the (B, K) logits of clips (B, T, 1, S, S); their softmax sums to 1."""
        return self.clip_logits(self.clip_features(clips))
