# SPDX-License-Identifier: Apache-2.0
"""What validation patients choose once a defect embedder has learned: attention, temperatures, when to abstain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from echo_plugin.defects.abstention import choose_angle
from echo_plugin.models.defect_embedder import DefectEmbedder, EmbedderConfig
from echo_plugin.preprocess import normalise
from echo_plugin.training.datasets import LabelledCine
from echo_plugin.training.defect_crops import DefectCrops, middle_of
from echo_plugin.training.defect_recipes import FIRST_FOCUS
from echo_plugin.training.loop import lower_precision

FOCUS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Values of attention that are tried; 0 is the mean."""
FEWEST_PATIENTS = 8


@dataclass(frozen=True)
class EmbeddedCrops:
    """(N, D) embeddings of the crops of some cines, with what each can show; ``rows`` : of each cine."""

    embeddings: Tensor
    shown: Tensor
    walls: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    cines: tuple[LabelledCine, ...]

    def of_cine(self, model: DefectEmbedder, number: int) -> Tensor:
        """Return (1, D) the embedding of one cine, as predictions join its crops."""
        rows = list(self.rows[number])
        walls = [self.walls[row] for row in rows]
        device = model.centres.device
        own, shown = self.embeddings[rows].to(device), self.shown[rows].to(device)
        return model.pool_cine(own, torch.ones(len(rows), device=device), shown, walls).cpu()

    def of_cines(self, model: DefectEmbedder) -> Tensor:
        """Return (C, D)."""
        return torch.cat([self.of_cine(model, number) for number in range(len(self.cines))])

    def of_patients(self, model: DefectEmbedder, patients: Sequence[str]) -> Tensor:
        """Return (P, D): the cines of each patient joined, as ``patient_defect`` joins them."""
        cines = self.of_cines(model)
        shown = torch.stack([self.shown[list(rows)].any(dim=0) for rows in self.rows])
        joined = []
        for patient in patients:
            own = [number for number, cine in enumerate(self.cines) if cine.patient_id == patient]
            device = model.centres.device
            weights = torch.ones(len(own), device=device)
            parts = cines[own].to(device), weights, shown[own].to(device)
            joined.append(model.pool(*parts, model.config.patient_focus).cpu())
        return torch.cat(joined)


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
    model: DefectEmbedder, embedded: EmbeddedCrops, truth: Tensor, patients: Sequence[str], patient_truth: Tensor
) -> tuple[EmbedderConfig, dict[str, float]]:
    """Give the model, on the CPU, its attention and temperatures; return the config and what the card says of them.

    ``truth`` (C,) : class ids; -1: cannot be seen in that cine. ``patient_truth`` (P,) of ``patients``.
    """
    own, seen = model.config, torch.where(truth >= 0)[0].tolist()
    is_enough = len(patients) >= FEWEST_PATIENTS

    def cine_logits(config: EmbedderConfig) -> Tensor:
        model.config = config
        return model.logits(torch.cat([embedded.of_cine(model, number) for number in seen]))

    def patient_logits(config: EmbedderConfig) -> Tensor:
        model.config = config
        return model.logits(embedded.of_patients(model, patients))

    tried = [
        dataclasses.replace(own, frame_focus=frames, focus=walls)
        for frames in FOCUS
        for walls in FOCUS
        if is_enough or (frames, walls) == (0.0, FIRST_FOCUS)
    ]
    config, temperature, losses = _best(tried, cine_logits, truth[seen])
    config = dataclasses.replace(config, temperature=temperature)
    tried = [dataclasses.replace(config, patient_focus=f) for f in FOCUS if is_enough or f == FIRST_FOCUS]
    config, temperature, _ = _best(tried, patient_logits, patient_truth)
    model.config = config = dataclasses.replace(config, patient_temperature=temperature)
    figures = {"validation_log_loss_attention": min(losses)}
    if is_enough:
        figures["validation_log_loss_mean"] = losses[0]
    return config, figures


def _best(
    tried: Sequence[EmbedderConfig], logits_of: Callable[[EmbedderConfig], Tensor], truth: Tensor
) -> tuple[EmbedderConfig, float, list[float]]:
    """Return the config of the lowest log loss at its own temperature, that temperature, and all the losses."""
    temperatures, losses = [], []
    for config in tried:
        logits = logits_of(config)
        temperatures.append(fit_temperature(logits, truth))
        losses.append(float(torch.nn.functional.cross_entropy(logits.double() / temperatures[-1], truth)))
    best = int(np.argmin(losses))
    return tried[best], temperatures[best], losses


@torch.no_grad()
def choose_abstention(model: DefectEmbedder, embedded: EmbeddedCrops, truth: Tensor) -> tuple[float, float, float]:
    """Return the angle beyond which a cine gets no answer, deg, and the coverage and accuracy it has on these cines."""
    embeddings = embedded.of_cines(model)
    angles = model.angles(embeddings).amin(dim=1).rad2deg().double().numpy()
    is_right = (model.logits(embeddings).argmax(dim=1) == truth).numpy()
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
