# SPDX-License-Identifier: Apache-2.0
"""What a person may choose about a training. No torch here: the command line imports it at once.

What a person may choose about the masked autoencoder, and the network that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echo_plugin.anatomy import VIEW_VOCABULARIES
from echo_plugin.model_card import SAMPLINGS, TEMPORAL_HEADS
from echo_plugin.models.masked_autoencoder import MaeConfig

STARTS = ("starter", "views", "scratch", "imagenet", "face", "mae")
WEIGHTS_FILES = (".safetensors", ".pth", ".pt")
RECIPES = ("ours", "paper", "usf-mae")
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
    """None: the trainer's own default.

    ``max_minutes`` : wall time of the epochs; the schedule of the learning rate is shortened with it.
    ``cache_dir`` : prepared frames of each cine are kept there for the next training; None: in memory alone.
    ``start`` : "starter" goes on from the model of that name in ``starter`` (None: the folder that is published to),
    if there is one of the same architecture; "views" takes the frame encoder of the published view classifier, which
    has seen more pictures than any other; "scratch" begins with random weights; "imagenet" takes the body that
    torchvision publishes; "mae" takes the encoder of the published masked autoencoder; a file is
    a published model's weights, a torchvision network's, or a masked autoencoder's.
    ``recipe`` : "paper": of detector and defects, that of the ASD/VSD paper; "usf-mae": of views, the fetal paper's.
    ``patience`` : end after so many epochs without a better measure; 0: never.
    ``log_dir`` : TensorBoard curves are written there; None: nowhere.
    ``should_stop`` : asked after every epoch; what is best so far is then published.
    ``command`` : written to the card.
    """

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
    scale: float | None = None
    """s of ArcFace."""
    margin_rad: float | None = None
    """m of ArcFace, rad."""
    head: str | None = None
    """Loss of the defect embedder: arcface, subcenter, cosface, softmax."""
    cropping: str | None = None
    """What the defect embedder sees: walls (each septum its own crop) or union (both in one)."""
    temporal: str | None = None
    """What the view classifier makes of a clip's frames: one of POOLINGS."""
    sampling: str | None = None
    """Which frames make a clip for it: one of ``view_choices.SAMPLINGS``."""
    frames_per_clip: int | None = None
    """T of the view classifier: so many frames make a clip."""
    chunks: int | None = None
    """K of the view classifier: an embedding is cut in so many parts (weave and attention)."""
    mirror: bool = False
    """Whether views are learned from clips of which half are exchanged left and right."""
    vocabulary: str | None = None
    """The views it tells apart: one of ``anatomy.VIEW_VOCABULARIES``."""

    def __post_init__(self) -> None:
        if self.start not in STARTS and Path(self.start).suffix not in WEIGHTS_FILES:
            files = ", ".join(WEIGHTS_FILES)
            msg = f"Training start is {self.start!r}; {', '.join(STARTS)} or a weights file ({files}) are accepted."
            raise ValueError(msg)
        if self.recipe not in RECIPES:
            msg = f"Training recipe is {self.recipe!r}; {', '.join(RECIPES)} are accepted."
            raise ValueError(msg)
        for name, accepted in (
            ("temporal", POOLINGS),
            ("sampling", SAMPLINGS),
            ("vocabulary", tuple(VIEW_VOCABULARIES)),
        ):
            value = getattr(self, name)
            if value is not None and value not in accepted:
                msg = f"Training option {name} is {value!r}; {', '.join(accepted)} are accepted."
                raise ValueError(msg)
        if self.patience is not None and self.patience < 0:
            msg = f"Training option patience is {self.patience}; a number from 0 or None is accepted."
            raise ValueError(msg)
        if self.is_of_one_frame and self.frames_per_clip not in (None, 1):
            msg = f"Training option frames_per_clip is {self.frames_per_clip}; an image classifier looks at one frame."
            raise ValueError(msg)
        counts = ("epochs", "batch_size", "frames_per_cine", "image_size", "frames_per_clip", "chunks")
        for name in (*counts, "max_minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                msg = f"Training option {name} is {value}; a positive number or None is accepted."
                raise ValueError(msg)

    @property
    def is_of_one_frame(self) -> bool:
        """Whether a view classifier of single frames is asked for: by name, or by the fetal paper's recipe."""
        return self.temporal == "image" or (self.recipe == "usf-mae" and self.temporal is None)


DEFAULT_BACKBONE, DEFAULT_SIZE_PX = "vit_tiny_patch16", 224
DECODERS = {"vit_base_patch16": (512, 8, 16), "vit_small_patch16": (256, 4, 8), "vit_micro_patch8": (64, 1, 4)}
"""Width, depth and heads of the decoder by encoder; the first is the authors'."""
LIGHT_DECODER = (128, 2, 4)
"""Of the other encoders."""


@dataclass(frozen=True)
class MaeOptions:
    """What a person may choose about the task; ``pictures_every`` : epochs between pictures of it."""

    mask_ratio: float = 0.75
    is_patch_normalised: bool = False
    pictures_every: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            msg = f"Part of the patches to hide is {self.mask_ratio}; a number between 0 and 1 is accepted."
            raise ValueError(msg)
        if self.pictures_every < 1:
            msg = f"Pictures are asked for every {self.pictures_every} epochs; 1 or more is accepted."
            raise ValueError(msg)


def mae_config(options: TrainOptions, task: MaeOptions) -> MaeConfig:
    """Return the network that the options ask for, with a decoder as light as its encoder."""
    backbone = options.backbone or DEFAULT_BACKBONE
    width, depth, heads = DECODERS.get(backbone, LIGHT_DECODER)
    return MaeConfig(
        backbone=backbone,
        input_size_px=options.image_size or DEFAULT_SIZE_PX,
        mask_ratio=task.mask_ratio,
        is_patch_normalised=task.is_patch_normalised,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
    )
