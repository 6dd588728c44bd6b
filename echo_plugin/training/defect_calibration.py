# SPDX-License-Identifier: Apache-2.0
"""What validation patients choose once a defect embedder has learned: attention, temperatures, when to abstain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from echo_plugin.answer.defect_rule import DefectRule, share_out
from echo_plugin.answer.defects import choose_angle
from echo_plugin.answer.preprocess import normalise
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.defect_crops import FIRST_FOCUS, DefectCrops, middle_of
from echo_plugin.training.loop import lower_precision

FOCUS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Values of attention that are tried; 0 is the mean."""
FEWEST_PATIENTS = 8
PRIOR = 0.5
"""Deviation of the log temperature and of the biases of patients before validation patients have spoken."""


@dataclass(frozen=True)
class EmbeddedCrops:
    """(N, D) embeddings of the crops of some cines, with what each can show; ``rows`` : of each cine."""

    embeddings: Tensor
    shown: Tensor
    walls: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    cines: tuple[LabelledCine, ...]

    def walls_of(self, rule: DefectRule, number: int) -> tuple[Tensor, Tensor]:
        """Return (M, D) the walls of one cine and (M, K) what each can show, as predictions join its crops."""
        rows = list(self.rows[number])
        walls = [self.walls[row] for row in rows]
        device = rule.embedder.centres.device
        own, shown = self.embeddings[rows].to(device), self.shown[rows].to(device)
        return rule.pool_walls(own, torch.ones(len(rows), device=device), shown, walls)

    def of_cines(self, rule: DefectRule) -> tuple[Tensor, Tensor]:
        """Return (C, D) embeddings and (C, K) logits, as predictions join the walls of each cine."""
        every = [rule.pool_cine(*self.walls_of(rule, number)) for number in range(len(self.cines))]
        embeddings, logits = zip(*every, strict=True)
        return torch.cat(embeddings).cpu(), torch.cat(logits).cpu()

    def of_patients(self, rule: DefectRule, patients: Sequence[str]) -> Tensor:
        """Return (P, K) the class probabilities of patients: their cines joined as ``combine_cines`` joins them."""
        walls = [self.walls_of(rule, number) for number in range(len(self.cines))]
        owners = [patients.index(cine.patient_id) for cine in self.cines]
        said = [rule.evidence(*pair).sum(dim=0) for pair in walls]
        sums = torch.zeros(len(patients), rule.embedder.config.classes, dtype=torch.float64)
        sums.index_add_(0, torch.tensor(owners), torch.stack(said).cpu())
        return sums.softmax(dim=1)


@torch.no_grad()
def embed_crops(
    model: DefectEmbedder, crops: DefectCrops, cines: Sequence[LabelledCine], *, batch_size: int = 64
) -> EmbeddedCrops:
    """Return the embeddings of the crops of ``cines``, cut as predictions cut them, on the CPU."""
    items = [crops.frames.of([cine]) for cine in cines]
    chosen = torch.cat(items)
    device = model.centres.device
    parts = []
    for batch in torch.split(chosen, batch_size):
        inputs = normalise(middle_of(crops, batch).to(device)).contiguous(memory_format=torch.channels_last)
        with lower_precision(device):
            parts.append(model.eval()(inputs).float().cpu())
    ends = np.cumsum([len(part) for part in items])
    rows = tuple(tuple(range(end - len(part), end)) for end, part in zip(ends.tolist(), items, strict=True))
    walls = tuple(crops.walls[chosen].tolist())
    return EmbeddedCrops(torch.cat(parts), crops.shown[chosen], walls, rows, tuple(cines))


@torch.no_grad()
def calibrate(
    rule: DefectRule, embedded: EmbeddedCrops, truth: Tensor, patients: Sequence[str], patient_truth: Tensor
) -> tuple[DefectRule, dict[str, float]]:
    """Return the rule, its model on the CPU, with attention and temperatures, and figures of them for the card.

    ``truth`` (C,) : class ids; -1: cannot be seen in that cine. ``patient_truth`` (P,) of ``patients``.
    """
    seen, is_enough = torch.where(truth >= 0)[0], len(patients) >= FEWEST_PATIENTS
    tried = [
        decided(rule, frame_focus=frames, focus=walls)
        for frames in FOCUS
        for walls in FOCUS
        if is_enough or (frames, walls) == (0.0, FIRST_FOCUS)
    ]
    temperatures, losses = [], []
    for one in tried:
        logits = embedded.of_cines(one)[1][seen]
        temperatures.append(fit_temperature(logits, truth[seen]))
        losses.append(float(cross_entropy(logits.double() / temperatures[-1], truth[seen])))
    best = int(np.argmin(losses))
    chosen = decided(tried[best], temperature=temperatures[best])
    figures = {"log_loss_attention": min(losses)} | ({"log_loss_mean": losses[0]} if is_enough else {})
    return calibrate_patients(chosen, embedded, patients, patient_truth), figures


def decided(rule: DefectRule, **changes: Any) -> DefectRule:
    """Return a rule with other numbers of its decision."""
    return dataclasses.replace(rule, decision=dataclasses.replace(rule.decision, **changes))


@torch.no_grad()
def calibrate_patients(rule: DefectRule, embedded: EmbeddedCrops, patients: Sequence[str], truth: Tensor) -> DefectRule:
    """Return the rule with the temperature and biases of least log loss over ``patients`` with (P,) class ids.

    Every class weighs as much, whatever chance put among the validation patients. The numbers are drawn towards 1 and
    0 as a normal distribution of ``PRIOR`` would, since validation patients are few.
    """
    classes, share = rule.embedder.config.classes, rule.decision.shown_share
    walls = [embedded.walls_of(rule, number) for number in range(len(embedded.cines))]
    owners = torch.tensor(
        [patients.index(cine.patient_id) for cine, (own, _) in zip(embedded.cines, walls, strict=True) for _ in own]
    )
    ratio = torch.cat([rule.likelihood_ratios(pooled).cpu() for pooled, _ in walls])
    is_about = torch.cat([rule.is_about(shown).cpu() for _, shown in walls])
    weights = torch.bincount(truth, minlength=classes).double().clamp_min(1).reciprocal()
    free = torch.zeros(1 + classes, dtype=torch.float64, requires_grad=True)  # log temperature, biases
    optimiser: Any = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        said = share_out(ratio / free[0].exp() + free[1:], share).masked_fill(~is_about, 0.0)
        sums = torch.zeros(len(patients), classes, dtype=torch.float64).index_add(0, owners, said)
        value: Tensor = cross_entropy(sums, truth, weight=weights) + (free / PRIOR).square().sum() / (2 * len(patients))
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = free.detach()
    biases = tuple(round(value, 4) for value in found[1:].tolist())
    return decided(rule, patient_temperature=float(found[0].exp()), evidence_bias=biases)


@torch.no_grad()
def choose_abstention(rule: DefectRule, embedded: EmbeddedCrops, truth: Tensor) -> tuple[float, float, float]:
    """Return the angle beyond which a cine gets no answer, deg, and the coverage and accuracy it has on these cines."""
    embeddings, logits = embedded.of_cines(rule)
    angles = rule.embedder.angles(embeddings).amin(dim=1).rad2deg().double().numpy()
    is_right = (logits.argmax(dim=1) == truth).numpy()
    known = (truth >= 0).numpy()
    limit = choose_angle(angles[known], is_right[known])
    answered = angles[known] <= limit
    return limit, float(answered.mean()), float(is_right[known][answered].mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature 0.1..10 that divides (N, K) logits to the smallest log loss on (N,) labels (Guo 2017)."""
    temperatures = torch.logspace(-1, 1, 201, dtype=torch.float64)
    scaled = logits.double()[None] / temperatures[:, None, None]
    losses = -scaled.log_softmax(dim=2)[:, torch.arange(len(labels)), labels].mean(dim=1)
    return float(temperatures[losses.argmin()])
