# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about a training, one class a model. No torch here: the command line imports it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from echo_plugin.anatomy import VIEW_VOCABULARIES
from echo_plugin.network_config import SAMPLINGS, TEMPORAL_HEADS

STARTS = ("starter", "views", "scratch", "imagenet", "mae")
WEIGHTS_FILES = (".safetensors", ".pth", ".pt")
POOLINGS = (*TEMPORAL_HEADS, "image")


@dataclass(frozen=True)
class EpochStatus:
    """How far a training is; ``epoch`` of ``total_epochs`` is done. Metrics: higher is better; None: not yet."""

    epoch: int
    total_epochs: int
    eta_s: float
    train_loss: float
    metric: float | None
    best_metric: float | None
    note: str = ""
    is_resumed: bool = False
    """Whether these epochs were learned before an interruption, after which the training now goes on."""


OnEpoch = Callable[[EpochStatus], None]


@dataclass(frozen=True)
class TrainOptions:
    """What is asked of every training. None: the trainer's own default.

    ``max_minutes`` : wall time of the epochs; the schedule of the learning rate is shortened with it.
    ``cache_dir`` : prepared frames of each cine are kept there for the next training; None: in memory alone.
    ``start`` : "starter" goes on from the model of that name in ``starter`` (None: the folder that is published to),
    if there is one of the same architecture; "views" takes the frame encoder of the published view classifier, which
    has seen more pictures than any other; "scratch" begins with random weights; "imagenet" takes the body that
    torchvision publishes; "mae" takes the encoder of the published masked autoencoder; a file is
    a published model's weights, a torchvision network's, or a masked autoencoder's.
    ``recipe`` : one of ``RECIPES``; the papers' are beside ours.
    ``patience`` : end after so many epochs without a better measure; 0: never.
    ``log_dir`` : TensorBoard curves are written there; None: nowhere.
    ``should_stop`` : asked after every epoch; what is best so far is then published.
    ``command`` : written to the card.
    """

    RECIPES: ClassVar[tuple[str, ...]] = ("ours",)
    STARTS: ClassVar[tuple[str, ...]] = STARTS

    epochs: int | None = None
    backbone: str | None = None
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    learning_rate: float | None = None
    max_minutes: float | None = None
    cache_dir: Path | None = None
    image_size: int | None = None
    frames_per_cine: int | None = None
    start: str = "starter"
    starter: Path | None = None
    should_stop: Callable[[], bool] | None = None
    command: str = ""
    recipe: str = "ours"
    patience: int | None = None
    log_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.start not in self.STARTS and Path(self.start).suffix not in WEIGHTS_FILES:
            files = ", ".join(WEIGHTS_FILES)
            starts = ", ".join(self.STARTS)
            msg = f"Training start is {self.start!r}; {starts} or a weights file ({files}) are accepted."
            raise ValueError(msg)
        self._require_one_of("recipe", self.RECIPES)
        if self.patience is not None and self.patience < 0:
            msg = f"Training option patience is {self.patience}; a number from 0 or None is accepted."
            raise ValueError(msg)
        counts = ("epochs", "batch_size", "frames_per_cine", "image_size", "max_minutes", "learning_rate")
        self._require_positive(counts)

    def _require_one_of(self, name: str, accepted: Sequence[str]) -> None:
        value = getattr(self, name)
        if value is not None and value not in accepted:
            msg = f"Training option {name} is {value!r}; {', '.join(accepted)} are accepted."
            raise ValueError(msg)

    def _require_positive(self, names: Sequence[str]) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                msg = f"Training option {name} is {value}; a positive number or None is accepted."
                raise ValueError(msg)


@dataclass(frozen=True)
class DetectorOptions(TrainOptions):
    """Of the septal detector; ``recipe`` "paper" is that of the ASD/VSD paper."""

    RECIPES: ClassVar[tuple[str, ...]] = ("ours", "paper")


@dataclass(frozen=True)
class DefectOptions(TrainOptions):
    """Of the defect embedder; ``recipe`` "paper" is that of the ASD/VSD paper, ``start`` "face" a face network's.

    ``scale, margin_rad`` : s and m of ArcFace. ``head`` : the loss: arcface, subcenter, cosface, softmax.
    ``cropping`` : what it sees: walls (each septum its own crop) or union (both in one).
    """

    RECIPES: ClassVar[tuple[str, ...]] = ("ours", "paper")
    STARTS: ClassVar[tuple[str, ...]] = (*STARTS, "face")

    scale: float | None = None
    margin_rad: float | None = None
    head: str | None = None
    cropping: str | None = None


@dataclass(frozen=True)
class ViewOptions(TrainOptions):
    """Of the view classifier; ``recipe`` "usf-mae" is the fetal paper's.

    ``temporal`` : what is made of a clip's frames: one of ``POOLINGS``. ``sampling`` : which frames make a clip.
    ``frames_per_clip`` : T. ``chunks`` : K, the parts an embedding is cut in (weave and attention).
    ``mirror`` : whether half of the clips are exchanged left and right. ``vocabulary`` : the views it tells apart: one
    of ``anatomy.VIEW_VOCABULARIES``.
    """

    RECIPES: ClassVar[tuple[str, ...]] = ("ours", "usf-mae")

    temporal: str | None = None
    sampling: str | None = None
    frames_per_clip: int | None = None
    chunks: int | None = None
    mirror: bool = False
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_one_of("temporal", POOLINGS)
        self._require_one_of("sampling", SAMPLINGS)
        self._require_one_of("vocabulary", tuple(VIEW_VOCABULARIES))
        self._require_positive(("frames_per_clip", "chunks"))
        if self.is_of_one_frame and self.frames_per_clip not in (None, 1):
            msg = f"Training option frames_per_clip is {self.frames_per_clip}; an image classifier looks at one frame."
            raise ValueError(msg)

    @property
    def is_of_one_frame(self) -> bool:
        """Whether a view classifier of single frames is asked for: by name, or by the fetal paper's recipe."""
        return self.temporal == "image" or (self.recipe == "usf-mae" and self.temporal is None)


@dataclass(frozen=True)
class MaeOptions(TrainOptions):
    """Of the masked autoencoder; ``mask_ratio`` : part of the patches that is hidden, between 0 and 1.

    ``is_patch_normalised`` : whether every patch to be drawn is brought to the same contrast.
    ``pictures_every`` : epochs between pictures of what it draws.
    """

    mask_ratio: float = 0.75
    is_patch_normalised: bool = False
    pictures_every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            msg = f"Part of the patches to hide is {self.mask_ratio}; a number between 0 and 1 is accepted."
            raise ValueError(msg)
        self._require_positive(("pictures_every",))
