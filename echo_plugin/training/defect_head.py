# SPDX-License-Identifier: Apache-2.0
"""The head of the defect network learned anew on the features of a backbone that has learned.

The backbone needs hours on a processor, the head seconds: features are made once and then cost nothing. As in Kang
2020, "Decoupling representation and classifier for long-tailed recognition" (ICLR): a head that is learned with its
backbone lags behind it, and one that was taught elsewhere does not fit other pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.preprocess import normalise
from echo_plugin.training.defect_crops import DefectCrops, middle_of
from echo_plugin.training.loop import balanced_batches, lower_precision
from echo_plugin.training.recipe import Recipe, schedule

RECIPE = Recipe(epochs=1, learning_rate=5e-4, weight_decay=0.05)
BATCH_SIZE = 64
DROPOUT = 0.3
MOST_CROPS = 6000
"""Of more, every second, third ... is taken: neighbouring frames say the same."""


def renew_head(
    model: DefectEmbedder,
    crops: DefectCrops,
    items: Tensor,
    *,
    steps: int,
    seed: int,
    validate: Callable[[nn.Module], float],
) -> float:
    """Learn the head anew on the crops ``items``; keep it if validation patients are no worse off; return the measure.

    ``steps`` : batches. ``validate`` : as in `run_epochs`.
    """
    before, old = validate(model), {name: value.clone() for name, value in model.state_dict().items()}
    items = items[:: -(-len(items) // MOST_CROPS)]
    features = backbone_features(model, crops, items)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.renew_head()
        learn_head(model, features, crops.labels[items], crops.cells[items], steps)
    after = validate(model)
    if after >= before:
        return after
    model.load_state_dict(old)
    return before


@torch.no_grad()
def backbone_features(model: DefectEmbedder, crops: DefectCrops, items: Tensor, *, batch_size: int = 64) -> Tensor:
    """Return (n, F) what the backbone gives of crops, cut as predictions cut them, on the model's device."""
    device = model.centres.device
    parts = []
    for batch in torch.split(items, batch_size):
        inputs = normalise(middle_of(crops, batch).to(device)).contiguous(memory_format=torch.channels_last)
        with lower_precision(device):
            parts.append(model.eval().features(inputs).float())
    return torch.cat(parts)


def learn_head(model: DefectEmbedder, features: Tensor, labels: Tensor, cells: Tensor, steps: int) -> None:
    """Learn all that follows the backbone from its (n, F) features; batches hold every cell as often."""
    learnt = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    optimiser = torch.optim.AdamW(learnt, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay)
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(len(labels))
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += balanced_batches(order, cells, BATCH_SIZE, generator, power=1.0)
    model.train()
    for step, rows in enumerate(batches[:steps]):
        for group in optimiser.param_groups:
            group["lr"] = RECIPE.learning_rate * schedule(step / steps, RECIPE.warm_up)
        seen = dropout(features[rows.to(features.device)], DROPOUT)
        loss = model.loss(model.embed_features(seen), labels[rows].to(features.device))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    model.eval()
