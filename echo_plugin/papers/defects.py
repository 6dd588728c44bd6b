# SPDX-License-Identifier: Apache-2.0
"""The table of the ASD/VSD paper, made again on phantoms: every network and loss on the same patients.

Patients are split 70/10/20 per cent, as the paper's 84/12/24; each seed splits anew and trains every row on its split.
Rows see crops round the true boxes, so that they differ in the network and not in the detector. Every finished row is
kept, and a run that was stopped goes on; what a row cost is in the table. The baseline without a network is histograms
of oriented gradients (Dalal 2005) with a support vector machine.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss, normalize

from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.runtime import choose_device
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.evaluate.folds import facts_of_cines, keep_outcome, read_outcome
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import Cohort, any_defect_metrics, classification_metrics
from echo_plugin.measure.verification import cross_patient_pairs, verification_metrics
from echo_plugin.model_card import load_card
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER, VIEW_CLASSIFIER
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.papers.defects_table import MEASURES, PAPER_ROWS, Row, summarise_table, write_table
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, digest_of, open_labelled_folder
from echo_plugin.training.defect_calibration import EmbeddedCrops, embed_crops
from echo_plugin.training.defect_crops import (
    DefectCrops,
    boxes_to_crop,
    chosen_recipe,
    defect_classes,
    middle_of,
    optimisation,
    prepare_defect_crops,
    require_shown,
    without_several_defects,
)
from echo_plugin.training.defects import (
    beginning_rule,
    choose_on_validation,
    learn_defects,
    load_beginning,
    majority_class,
    patients_of,
    with_new_head,
)
from echo_plugin.training.loop import move_to_device, training_key
from echo_plugin.training.options import DefectOptions
from echo_plugin.training.provenance import data_key, seen_patients, words_for_test
from echo_plugin.training.splits import PARTS, Split, split_by_patient
from echo_plugin.training.start import Start

CELL_PX, BLOCK_CELLS, ORIENTATIONS, SIDE_PX = 16, 2, 9, 128


def hog_features(crops: DefectCrops, items: Tensor) -> FloatArray:
    """Return (n, F) float64 of the crops ``items``, as predictions would cut them, at 128 px."""
    from skimage.feature import hog
    from skimage.transform import resize

    rows = [
        hog(
            resize(crop, (SIDE_PX, SIDE_PX), anti_aliasing=True),  # type: ignore[no-untyped-call]
            orientations=ORIENTATIONS,
            pixels_per_cell=(CELL_PX, CELL_PX),
            cells_per_block=(BLOCK_CELLS, BLOCK_CELLS),
            block_norm="L2-Hys",
        )
        for crop in middle_of(crops, items).numpy()
    ]
    return np.array(rows, dtype=np.float64)


def hog_svm_scores(crops: DefectCrops, learned_from: Tensor, asked: Tensor, seed: int) -> Tensor:
    """Return (n, K) float32: the decision values of the crops ``asked``, one for each class against the others.

    A class of which no crop was learned from has the lowest value of its row.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    labels = crops.labels[learned_from].numpy()
    machine = make_pipeline(StandardScaler(), LinearSVC(C=1e-3, class_weight="balanced", random_state=seed))
    machine.fit(hog_features(crops, learned_from), labels)
    values = np.asarray(machine.decision_function(hog_features(crops, asked)))
    values = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    scores = np.repeat(values.min(axis=1, keepdims=True), len(crops.classes), axis=1)
    scores[:, np.unique(labels)] = values
    return torch.from_numpy(scores).float()


CHOSEN = ("frame_focus", "focus", "patient_temperature", "abstain_angle_deg")
PLAIN, CLASSES = "plain embeddings", "class probabilities"
"""What cines are compared by: as the paper does, and as viewers are shown similar cases."""


@dataclass(frozen=True)
class NetworkAnswers:
    """What a network says of the test cines and patients."""

    rule: DefectRule
    embedded: EmbeddedCrops

    @torch.no_grad()
    def of_cines(self) -> dict[str, FloatArray]:
        """Return (C, D) unit vectors by what they are: the embeddings, as in the paper, and the class probabilities."""
        embeddings, logits = self.embedded.of_cines(self.rule)
        signatures = self.rule.signature(self.rule.probabilities(logits))
        vectors = {PLAIN: normalize(embeddings, dim=1), CLASSES: signatures}
        return {kind: unit.double().numpy() for kind, unit in vectors.items()}

    @torch.no_grad()
    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        return self.embedded.of_patients(self.rule, patients).numpy()


class HogAnswers:
    """What the support vector machine says of the test cines and patients: the mean of the scores of their crops.

    It has nothing to choose, so that it learns from the validation patients too.
    """

    def __init__(self, crops: DefectCrops, parts: dict[str, list[LabelledCine]], seed: int) -> None:
        learned_from = torch.cat([crops.frames.of(parts[part]) for part in ("train", "validation")])
        learned_from = learned_from[crops.is_example[learned_from]]
        items = [crops.frames.of([cine]) for cine in parts["test"]]
        scores = hog_svm_scores(crops, learned_from, torch.cat(items), seed)
        self.scores = [part.mean(dim=0) for part in torch.split(scores, [len(rows) for rows in items])]
        self.patients = [cine.patient_id for cine in parts["test"]]

    def of_cines(self) -> dict[str, FloatArray]:
        """Return (C, K) unit vectors of class probabilities; embeddings it has none."""
        return {CLASSES: normalize(torch.stack(self.scores).softmax(dim=1), dim=1).double().numpy()}

    def of_patients(self, patients: Sequence[str]) -> FloatArray:
        """Return (P, K) probabilities."""
        rows = [[s for s, p in zip(self.scores, self.patients, strict=True) if p == patient] for patient in patients]
        means: Tensor = torch.stack([torch.stack(row).mean(dim=0) for row in rows])
        return means.softmax(dim=1).double().numpy()


def measure(
    answers: NetworkAnswers | HogAnswers,
    crops: DefectCrops,
    parts: dict[str, list[LabelledCine]],
    split: str,
    seed: int,
) -> dict[str, Any]:
    """Return the figures of the paper's table by patient, verification between cines of different patients.

    ``split`` : what the test patients are called.
    """
    classes = [defect.value for defect in crops.classes]
    majority = majority_class(crops, parts["train"])
    patients, truth = patients_of(parts["test"], crops)
    probabilities = answers.of_patients(patients)
    cohort = Cohort(tuple(patients), split, seed)
    metrics = classification_metrics(cohort, truth.numpy(), probabilities, classes=classes, majority_id=majority)
    normal = classes.index("Normal")
    said = probabilities.argmax(axis=1)
    metrics |= any_defect_metrics(cohort, truth.numpy(), said, normal_id=normal, majority_id=majority)
    cropping = "walls" if bool((crops.walls >= 0).all()) else "union"
    seen = crops.truths(parts["test"], cropping)
    known = torch.where(seen >= 0)[0].tolist()
    owners = [parts["test"][number].patient_id for number in known]
    for kind, vectors in answers.of_cines().items():
        pairs = cross_patient_pairs(vectors[known], seen[known].numpy(), owners)
        metrics |= {f"{name} ({kind})": metric for name, metric in verification_metrics(pairs, split, seed).items()}
    return {
        "patients": {part: len({cine.patient_id for cine in cines}) for part, cines in parts.items()},
        "cines": len(parts["test"]),
        "metrics": {
            name: dataclasses.asdict(metric) for name, metric in metrics.items() if metric.value == metric.value
        },
    }


def validation_log_loss(answers: NetworkAnswers, crops: DefectCrops) -> float:
    """Return the log loss of validation patients, mean over their classes: one measure for every network and recipe."""
    patients, truth = patients_of(answers.embedded.cines, crops)
    probabilities = torch.from_numpy(answers.of_patients(patients)).clamp_min(1e-6)
    weights = torch.bincount(truth, minlength=len(crops.classes)).double().clamp_min(1).reciprocal()
    return float(nll_loss(probabilities.log(), truth, weight=weights))


logger = logging.getLogger(__name__)


FRACTIONS = (0.7, 0.1, 0.2)
"""The paper's 84, 12 and 24 of 120 patients."""


def reproduce_defects(
    studies: Path,
    out: Path,
    rows: Sequence[Row],
    *,
    seeds: int,
    options: DefectOptions,
    title: str = "table",
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = summarise_table,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and measure every row for every seed; write ``title`` .json and .md to ``out``.

    Parameters
    ----------
    options
        What all rows share; a row's own options go before them.
    summarise
        What the outcomes say: the rows of the table, and sentences.

    Raises
    ------
    TrainingDataError
        If the folder has too few patients with defect and boxes.
    """
    labelled = without_several_defects(without_known(open_labelled_folder(studies), rows, options))
    outcomes = []
    for seed in range(seeds):
        for number, row in enumerate(rows):
            if progress is not None:
                progress(seed * len(rows) + number, seeds * len(rows), row.name)
            own = dataclasses.replace(options, **(row.options or {"recipe": "paper"}), seed=seed)
            outcomes.append(_kept_or_run(labelled, row, own, out / "rows" / title))
            report = {
                "studies": studies.name,
                "on_phantoms": labelled.is_phantom,
                "seeds": seeds,
                "fractions": FRACTIONS,
                "outcomes": outcomes,
                **summarise(outcomes),
                "paper": PAPER_ROWS,
                "cost_s": sum(outcome.get("wall_time_s", 0.0) for outcome in outcomes),
            }
            write_table(out, title, report)
    if progress is not None:
        progress(seeds * len(rows), seeds * len(rows), "")
    return report


def without_known(labelled: LabelledFolder, rows: Sequence[Row], options: DefectOptions) -> LabelledFolder:
    """Return the folder without patients of whom a published model that some row begins with has learned."""
    names = {"views": VIEW_CLASSIFIER, "starter": DEFECT_EMBEDDER}
    patients = {cine.patient_id for cine in labelled.cines}
    known: set[str] = set()
    for start in {str((row.options or {}).get("start", "")) for row in rows} & set(names):
        if options.starter is not None:
            with suppress(ModelNotFoundError, ModelMismatchError):
                card = load_card(options.starter, names[start])
                known |= seen_patients(card, patients)
    if known:
        logger.warning("%d patients are left out: the weights that rows begin with have seen them", len(known))
    return dataclasses.replace(labelled, cines=tuple(c for c in labelled.cines if c.patient_id not in known))


def _kept_or_run(labelled: LabelledFolder, row: Row, options: DefectOptions, folder: Path) -> dict[str, Any]:
    """Return the outcome of a row on one seed; one of the same files, labels, numbers and first weights is read."""
    path = folder / f"{row.file}-seed{options.seed}.json"
    numbers = {k: v for k, v in vars(options).items() if k not in ("cache_dir", "device", "starter", "should_stop")}
    facts = facts_of_cines(labelled, labelled.cines)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        model, start = _begin(labelled, row, options, folder)
        key = training_key(
            model, digest_of(facts), sorted(numbers.items(), key=lambda i: i[0]), row.options is None, MEASURES
        )
        if (kept := read_outcome(path, key)) is not None:
            return kept
        outcome = _run(labelled, row, options, folder, (model, start))
    except (ModelNotFoundError, ModelMismatchError) as exc:
        return {"row": row.name, "seed": options.seed, "not_run": str(exc)}  # tried again: the weights may come
    spent_s = time.monotonic() - started + outcome.pop("earlier_s", 0.0)
    outcome |= {"row": row.name, "seed": options.seed, "wall_time_s": round(spent_s, 1)}
    keep_outcome(path, key, outcome)
    return outcome


def _begin(
    labelled: LabelledFolder, row: Row, options: DefectOptions, folder: Path
) -> tuple[DefectEmbedder, Start | None]:
    """Return the network of a row with the weights that it begins with; without a start for the row without one."""
    torch.manual_seed(options.seed)
    network = chosen_recipe(options).network
    classes = [defect.value for defect in defect_classes(labelled.cines)]
    model = DefectEmbedder(dataclasses.replace(network, classes=len(classes)))
    return model, load_beginning(model, folder, options, classes) if row.options is not None else None


@dataclass(frozen=True)
class Material:
    """The crops of one cropping and size, and which cines of one split are for what."""

    cines: tuple[LabelledCine, ...]
    split: Split
    crops: DefectCrops
    parts: dict[str, list[LabelledCine]]


def _run(
    labelled: LabelledFolder,
    row: Row,
    options: DefectOptions,
    folder: Path,
    begun: tuple[DefectEmbedder, Start | None],
) -> dict[str, Any]:
    """Return what a row is worth; ``earlier_s`` : how long it had learned before it was stopped, wall time."""
    model, start = begun
    material = _prepare(labelled, options)
    crops, parts, words = material.crops, material.parts, words_for_test(labelled)
    if start is None:
        return measure(HogAnswers(crops, parts, options.seed), crops, parts, words, options.seed)
    move_to_device(model, choose_device(options.device))
    facts = [
        data_key(material.cines, material.split, options, model.config),
        *facts_of_cines(labelled, material.cines),
    ]
    kept = folder / f"{row.file}-seed{options.seed}.state.pt", digest_of(facts)
    began = time.monotonic()
    recipe = chosen_recipe(options)
    rule = beginning_rule(model, crops, parts["train"], recipe)
    learned = learn_defects(rule, crops, parts, optimisation(recipe, start, options), options, None, kept)
    earlier_s = max(0.0, learned.wall_time_s - (time.monotonic() - began))
    learned = with_new_head(rule, crops, parts, learned, recipe, options)
    validation, test = (embed_crops(model, crops, parts[part]) for part in ("validation", "test"))
    model.float().cpu()
    rule, figures = choose_on_validation(rule, validation, crops)
    outcome = measure(NetworkAnswers(rule, test), crops, parts, words, options.seed)
    kept[0].unlink(missing_ok=True)
    source = start.card.name if start.card else start.body or "random weights"
    network = recipe.network
    return outcome | {
        "network": f"{network.backbone}, {network.input_size_px} px, {network.cropping}, begun with {source}",
        "epochs": learned.epochs,
        "earlier_s": earlier_s,
        "validation_log_loss": validation_log_loss(NetworkAnswers(rule, validation), crops),
        "chosen": figures | {name: getattr(rule.decision, name) for name in CHOSEN},
    }


def _prepare(labelled: LabelledFolder, options: DefectOptions) -> Material:
    recipe = chosen_recipe(options)
    cropping = recipe.network.cropping
    cines = [cine for cine in labelled.cines if cine.annotation.defect and boxes_to_crop(cine, cropping)]
    defects = labelled.defects
    patients = sorted({cine.patient_id for cine in cines})
    split = split_by_patient({p: defects.get(p) for p in patients}, seed=options.seed, fractions=FRACTIONS)
    crops = prepare_defect_crops(
        labelled,
        cines,
        size_px=recipe.network.input_size_px,
        cropping=cropping,
        frames_per_cine=recipe.frames_per_cine,
        cache_dir=options.cache_dir,
    )
    parts = crops.frames.readable({part: _cines_of(part, split, cines) for part in PARTS})
    require_shown(crops, parts, cropping)
    return Material(tuple(cines), split, crops, parts)


def _cines_of(part: str, split: Split, cines: Sequence[LabelledCine]) -> list[LabelledCine]:
    wanted = frozenset(getattr(split, part))
    return [cine for cine in cines if cine.patient_id in wanted]
