# SPDX-License-Identifier: Apache-2.0
"""The second stage with the encoder held still: every frame is embedded once, and only what joins frames learns.

The rows of the paper's table differ in nothing else, and learned alone it takes seconds a row, so that it comes to its
end on a processor. (The paper goes on learning with the encoder too; ``folds`` does that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echo_plugin.anatomy import View
from echo_plugin.models.checkpoint import load_state
from echo_plugin.models.durable_file import write_synced
from echo_plugin.models.from_card import build_view_classifier
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig, sample_clips
from echo_plugin.preprocess import normalise
from echo_plugin.runtime import choose_device
from echo_plugin.training.clips import ClipTable
from echo_plugin.training.datasets import LabelledCine, LabelledFolder
from echo_plugin.training.loop import lower_precision, place, run_epochs
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.prepared_frames import PreparedFrames, prepare_frames, prepare_whole
from echo_plugin.training.recipe import Recipe
from echo_plugin.training.splits import PARTS, Split
from echo_plugin.training.view_recipes import view_recipe
from echo_plugin.views.folds import TRAIN_CLIPS, FoldAnswers, Published, measured_apart

EPOCHS = 40
CHANGED = 1
"""Further embeddings of each cine to learn from, in which its frames are moved and changed alike; each costs a pass."""


@dataclass(frozen=True)
class EmbeddedFrames:
    """``values`` (R, 1 + CHANGED, D): the frames that any row looks at, as they are, then changed.

    ``frames`` : (F,) 0-based indices of each cine's, ascending, in the order of its rows.
    """

    prepared: PreparedFrames
    frames: tuple[tuple[int, ...], ...]
    values: Tensor

    def table(self, config: ViewConfig, vocabulary: Sequence[View], split: Split) -> ClipTable:
        """Return the clips of a row of the table, of rows of ``values``."""
        rows, owners = [], []
        for index in torch.unique(self.prepared.cine).tolist():
            cine = self.prepared.cines[index]
            first = int(torch.searchsorted(self.prepared.cine, index))
            rows.append(first + np.searchsorted(self.frames[index], clips_of(config, cine)))
            owners += [index] * len(rows[-1])
        labels = torch.tensor([vocabulary.index(c.annotation.view) for c in self.prepared.cines if c.annotation.view])
        cine = torch.tensor(owners)
        part_of = [split.part_of(self.prepared.cines[index].patient_id) for index in owners]
        parts = {p: torch.tensor([i for i, part in enumerate(part_of) if part == p]) for p in PARTS}
        table = ClipTable(self.prepared.pixels, torch.from_numpy(np.concatenate(rows)), labels[cine], cine, parts)
        return measured_apart(table)


def clips_of(config: ViewConfig, cine: LabelledCine) -> NDArray[np.int64]:
    """Return (TRAIN_CLIPS + 1, T) frame indices: the clips to learn from, last the one that is measured."""
    return np.concatenate([sample_clips(config, cine.frame_count, count) for count in (TRAIN_CLIPS, 1)])


def embed_frames(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    configs: Sequence[ViewConfig],
    encoder: Published,
    *,
    options: TrainOptions,
    kept: Path,
) -> EmbeddedFrames:
    """Return the embeddings of the frames that networks of ``configs`` look at; ``kept`` : their file."""
    frames = tuple(
        tuple(np.unique(np.concatenate([clips_of(config, cine).ravel() for config in configs])).tolist())
        for cine in cines
    )
    size = configs[0].input_size_px
    prepared = prepare_frames(
        labelled,
        list(zip(cines, frames, strict=True)),
        prepare_whole(size),
        name=f"views-{size}-all",
        cache_dir=options.cache_dir,
    )
    if not kept.is_file():
        write_synced(kept, save_safetensors({"values": _embed(prepared, encoder, options)}))
    return EmbeddedFrames(prepared, frames, load_file(kept)["values"].float())


@torch.inference_mode()
def _embed(prepared: PreparedFrames, published: Published, options: TrainOptions) -> Tensor:
    card, state = published
    encoder = build_view_classifier(card)
    load_state(encoder, state, card)
    device = choose_device(options.device)
    place(encoder.eval(), device)
    generator, recipe = torch.Generator().manual_seed(0), view_recipe(options)
    rows = []
    for index in torch.unique(prepared.cine).tolist():
        pixels = prepared.pixels[prepared.cine == index].to(device).float().div(255)[None]  # one clip of all its frames
        versions = [pixels, *(recipe.vary(pixels, generator) for _ in range(CHANGED))]
        with lower_precision(device):
            each = [encoder.clip_features(normalise(version * 255))[0] for version in versions]
        rows.append(torch.stack(each, dim=1).half().cpu())
    return torch.cat(rows)


def learn_joining(
    table: ClipTable, embeddings: Tensor, config: ViewConfig, options: TrainOptions
) -> tuple[ViewClassifier, float]:
    """Return a classifier of embeddings, without an encoder, and the validation's mean log probability of the truth."""
    torch.manual_seed(options.seed)
    model = ViewClassifier(config)
    model.backbone = nn.Identity()
    stage = "frames" if config.temporal == "mean" else "clips"
    recipe = view_recipe(options)

    def loss(learner: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(learner, ViewClassifier)
        version = torch.randint(embeddings.shape[1], (len(chosen), 1), generator=generator)
        seen = embeddings[table.frames[chosen], version]  # (B, T, D)
        if stage == "frames":
            one = torch.randint(seen.shape[1], (len(chosen),), generator=generator)
            logits = learner.frame_head(seen[torch.arange(len(chosen)), one])
        else:
            logits = learner.clip_logits(seen)
        return cross_entropy(logits, table.labels[chosen], label_smoothing=recipe.smoothing)

    def validate(learner: nn.Module) -> float:
        assert isinstance(learner, ViewClassifier)
        chosen = table.parts["validation"]
        return -float(cross_entropy(measured_logits(learner, table, embeddings, chosen), table.labels[chosen]))

    rate = options.learning_rate or recipe.learning_rate
    learned = run_epochs(
        model,
        Recipe(epochs=options.epochs or EPOCHS, learning_rate=rate, weight_decay=recipe.weight_decay),
        batches=lambda g: table.draw(stage, options.batch_size or recipe.batch_size, g),
        loss=loss,
        validate=validate,
        seed=options.seed,
    )
    return model, learned.best_metric


@torch.inference_mode()
def measured_logits(model: ViewClassifier, table: ClipTable, embeddings: Tensor, chosen: Tensor) -> Tensor:
    """Return the (M, K) logits of clips as they are."""
    return model.eval().clip_logits(embeddings[table.frames[chosen], 0])


def joining_answers(model: ViewClassifier, table: ClipTable, embeddings: Tensor, measure: float) -> FoldAnswers:
    """Return what the classifier of embeddings says of the test patients' middle clips."""
    chosen = table.parts["test"]
    logits = measured_logits(model, table, embeddings, chosen).double().numpy().astype(np.float64)
    return FoldAnswers(logits, table.labels[chosen].numpy(), table.cine[chosen].numpy(), measure)
