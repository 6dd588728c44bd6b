# SPDX-License-Identifier: Apache-2.0
"""The second stage with the encoder held still: every clip is embedded once, and only what joins its frames learns.

The rows of the paper's table differ in nothing else, and learned alone it takes seconds a row, so that it comes to its
end on a processor. (The paper goes on learning with the encoder too; ``folds`` does that.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from echo_plugin.models.checkpoint import load_state
from echo_plugin.models.durable_file import write_synced
from echo_plugin.models.from_card import build_view_classifier
from echo_plugin.models.view_classifier import ViewClassifier, ViewConfig
from echo_plugin.preprocess import normalise
from echo_plugin.runtime import choose_device
from echo_plugin.training.clips import ClipTable
from echo_plugin.training.loop import place, run_epochs
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.recipe import Recipe
from echo_plugin.training.view_recipes import view_recipe
from echo_plugin.views.folds import TRAIN_CLIPS, FoldAnswers, Published

EPOCHS = 40
CHANGED = 2
"""Further embeddings of each clip to learn from, in which its frames are moved and changed alike."""
BATCH_CLIPS = 8


@dataclass(frozen=True)
class StillEncoder:
    """A published classifier's encoder; ``kept`` : the folder in which embeddings are kept for the next run."""

    published: Published
    kept: Path

    def embeddings(self, table: ClipTable, options: TrainOptions, name: str) -> Tensor:
        """Return (N, 1 + CHANGED, T, D): each clip as it is, then changed; one to measure is there as it is alone.

        ``name`` : tells clips apart that are kept side by side.
        """
        path = self.kept / f"embedded-{name}.safetensors"
        if not path.is_file():
            write_synced(path, save_safetensors({"embeddings": self._embed(table, options)}))
        return load_file(path)["embeddings"].float()

    @torch.inference_mode()
    def _embed(self, table: ClipTable, options: TrainOptions) -> Tensor:
        card, state = self.published
        encoder = build_view_classifier(card)
        load_state(encoder, state, card)
        device = choose_device(options.device)
        place(encoder.eval(), device)
        generator, recipe = torch.Generator().manual_seed(0), view_recipe(options)
        rows = []
        for clips in torch.split(torch.arange(len(table.frames)), BATCH_CLIPS):
            pixels = table.pixels[table.frames[clips]].to(device).float().div(255)
            versions = [encoder.clip_features(normalise(pixels * 255))]
            is_learned = clips % (TRAIN_CLIPS + 1) < TRAIN_CLIPS
            for _ in range(CHANGED):
                version = torch.zeros_like(versions[0])
                varied = recipe.vary(pixels[is_learned], generator)
                version[is_learned] = encoder.clip_features(normalise(varied * 255))
                versions.append(version)
            rows.append(torch.stack(versions, dim=1).half().cpu())
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
        version = torch.randint(embeddings.shape[1], (len(chosen),), generator=generator)
        seen = embeddings[chosen, version]  # (B, T, D)
        if stage == "frames":
            place_of = torch.randint(seen.shape[1], (len(chosen),), generator=generator)
            logits = learner.frame_head(seen[torch.arange(len(chosen)), place_of])
        else:
            logits = learner.clip_logits(seen)
        return cross_entropy(logits, table.labels[chosen], label_smoothing=recipe.smoothing)

    def validate(learner: nn.Module) -> float:
        assert isinstance(learner, ViewClassifier)
        chosen = table.parts["validation"]
        return -float(cross_entropy(measured_logits(learner, embeddings, chosen), table.labels[chosen]))

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
def measured_logits(model: ViewClassifier, embeddings: Tensor, chosen: Tensor) -> Tensor:
    """Return the (M, K) logits of clips as they are."""
    return model.eval().clip_logits(embeddings[chosen, 0])


def joining_answers(model: ViewClassifier, table: ClipTable, embeddings: Tensor, measure: float) -> FoldAnswers:
    """Return what the classifier of embeddings says of the test patients' middle clips."""
    chosen = table.parts["test"]
    logits = measured_logits(model, embeddings, chosen).double().numpy().astype(np.float64)
    return FoldAnswers(logits, table.labels[chosen].numpy(), table.cine[chosen].numpy(), measure)
