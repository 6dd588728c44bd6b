# SPDX-License-Identifier: Apache-2.0
"""The second stage with the encoder frozen: every frame is embedded once, and only what joins frames learns.

The rows of the paper's table differ in nothing else, and learned alone it takes seconds a row, so that it comes to its
end on a processor. (The paper goes on learning with the encoder too; ``folds`` does that.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echo_plugin.anatomy import View
from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.runtime import choose_device
from echo_plugin.cine import Cine
from echo_plugin.durable import write_atomically
from echo_plugin.evaluate.folds import FoldAnswers, Published, measured_apart
from echo_plugin.models.checkpoint import build_view_classifier, load_state
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, PreparedFrames, prepare_frames, prepare_whole
from echo_plugin.training.loop import Recipe, lower_precision, move_to_device, run_epochs
from echo_plugin.training.options import ViewOptions
from echo_plugin.training.splits import PARTS, Split
from echo_plugin.training.view_stages import ClipChoice, ClipTable, view_recipe

EPOCHS = 40
CHANGED = 1
"""Further embeddings of each cine to learn from, in which its frames are moved and changed alike; each costs a pass."""


@dataclass(frozen=True)
class EmbeddedFrames:
    """``values`` (R, 1 + CHANGED, D): the frames that any row of the table looks at, as they are, then changed.

    ``prepared`` : those frames; its targets (R, M) are 1 where a frame takes one of the M places in all clips of its
    cine. ``places`` : the places of each choice of clips, by its facts.
    """

    prepared: PreparedFrames
    places: Mapping[str, slice]
    values: Tensor

    def table(self, choice: ClipChoice, vocabulary: Sequence[View], split: Split) -> ClipTable:
        """Return the clips of a row of the table, of rows of ``values``."""
        rows, owners = [], []
        for index in torch.unique(self.prepared.cine).tolist():
            own = torch.where(self.prepared.cine == index)[0]
            taken = self.prepared.targets[own][:, self.places[choice.facts]].argmax(dim=0)
            rows.append(own[taken].reshape(-1, choice.config.frames_per_clip))
            owners += [index] * len(rows[-1])
        labels = torch.tensor([vocabulary.index(c.annotation.view) for c in self.prepared.cines if c.annotation.view])
        cine = torch.tensor(owners)
        part_of = [split.part_of(self.prepared.cines[index].patient_id) for index in owners]
        parts = {p: torch.tensor([i for i, q in enumerate(part_of) if q == p], dtype=torch.long) for p in PARTS}
        return measured_apart(ClipTable(self.prepared.pixels, torch.cat(rows), labels[cine], cine, parts))


def embed_frames(
    labelled: LabelledFolder,
    cines: Sequence[LabelledCine],
    choices: Sequence[ClipChoice],
    encoder: Published,
    *,
    options: ViewOptions,
    kept: Path,
) -> EmbeddedFrames:
    """Return the embeddings of the frames of the clips of all ``choices``, each frame once; ``kept`` : their file."""
    distinct = {choice.facts: choice for choice in choices}
    ends = np.cumsum([0, *(sum(c.counts) * c.config.frames_per_clip for c in distinct.values())]).tolist()
    size = choices[0].config.input_size_px

    def prepare(cine: Cine, labels: LabelledCine, frame_indices: tuple[int, ...]) -> tuple[Tensor, NDArray[Any]]:
        wanted = np.concatenate([choice.of(cine).ravel() for choice in distinct.values()])
        frames = np.unique(wanted)
        pixels, _ = prepare_whole(size)(cine, labels, tuple(frames.tolist()))
        return pixels, (frames[:, None] == wanted).astype(np.float32)

    prepared = prepare_frames(
        labelled,
        [(cine, ()) for cine in cines],
        prepare,
        name=f"views-{size}-places-{list(distinct)}",
        cache_dir=options.cache_dir,
    )
    if not kept.is_file():
        write_atomically(kept, save_safetensors({"values": _embed(prepared, encoder, options)}))
    places = {facts: slice(*pair) for facts, pair in zip(distinct, pairwise(ends), strict=True)}
    return EmbeddedFrames(prepared, places, load_file(kept)["values"].float())


@torch.inference_mode()
def _embed(prepared: PreparedFrames, published: Published, options: ViewOptions) -> Tensor:
    card, state = published
    encoder = build_view_classifier(card)
    load_state(encoder, state, card)
    device = choose_device(options.device)
    move_to_device(encoder.eval(), device)
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
    table: ClipTable, embeddings: Tensor, config: ViewConfig, options: ViewOptions
) -> tuple[ViewClassifier, float]:
    """Return a classifier of embeddings, without an encoder, and the validation's mean log probability of the truth."""
    torch.manual_seed(options.seed)
    model = ViewClassifier(config)
    model.backbone = nn.Identity()
    stage = "frames" if config.temporal == "mean" else "clips"
    recipe = view_recipe(options)

    def loss(learner: ViewClassifier, chosen: Tensor, generator: torch.Generator) -> Tensor:
        version = torch.randint(embeddings.shape[1], (len(chosen), 1), generator=generator)
        seen = embeddings[table.frames[chosen], version]  # (B, T, D)
        if stage == "frames":
            one = torch.randint(seen.shape[1], (len(chosen),), generator=generator)
            logits = learner.frame_head(seen[torch.arange(len(chosen)), one])
        else:
            logits = learner.clip_logits(seen)
        return cross_entropy(logits, table.labels[chosen], label_smoothing=recipe.smoothing)

    def validate(learner: ViewClassifier) -> float:
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
