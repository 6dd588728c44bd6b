# SPDX-License-Identifier: Apache-2.0
"""Training the defect embedder: ArcFace on crops of the septa, one answer per cine, calibrated on validation.

After the backbone, the head is learned anew on its features, which takes seconds. As in Kang 2020, "Decoupling
representation and classifier for long-tailed recognition" (ICLR): a head that is learned with its backbone lags behind
it, and one that was taught elsewhere does not fit other pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout

from echo_plugin.anatomy import Defect
from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.answer.preprocess import CONTEXT_MARGIN, normalise
from echo_plugin.answer.runtime import choose_device
from echo_plugin.measure.classes import Cohort, classification_metrics
from echo_plugin.model_card import DefectDecision, Metric, ModelCard
from echo_plugin.models.backbones import face_file
from echo_plugin.models.checkpoint import DEFECT_EMBEDDER
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.progress import Progress
from echo_plugin.training.augment import CROP_MOTION, centre_affines, change_appearance, compose, random_affines, warp
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.defect_calibration import EmbeddedCrops, calibrate, choose_abstention, decided, embed_crops
from echo_plugin.training.defect_crops import (
    DefectCrops,
    DefectRecipe,
    boxes_to_crop,
    chosen_recipe,
    defect_classes,
    middle_of,
    optimisation,
    prepare_defect_crops,
    require_shown,
    shown_shares,
    without_several_defects,
)
from echo_plugin.training.loop import (
    Learned,
    Recipe,
    as_published,
    balanced_batches,
    lower_precision,
    move_to_device,
    run_epochs,
    schedule,
    state_path,
)
from echo_plugin.training.options import DefectOptions, OnEpoch
from echo_plugin.training.processes import first_process_first
from echo_plugin.training.provenance import Origin, build_card, data_key, origin_of, publish_learned, words_for_test
from echo_plugin.training.splits import patient_defects
from echo_plugin.training.start import Start, begun_training, known_classes, load_start


def choose_on_validation(
    rule: DefectRule, embedded: EmbeddedCrops, crops: DefectCrops
) -> tuple[DefectRule, dict[str, float]]:
    """Return the rule with attention, temperatures and when to abstain, and figures of that on validation patients."""
    truth = crops.truths(embedded.cines, rule.embedder.config.cropping)
    patients, patient_truth = patients_of(embedded.cines, crops)
    rule, figures = calibrate(rule, embedded, truth, patients, patient_truth)
    limit, coverage, accuracy = choose_abstention(rule, embedded, truth)
    figures |= {"coverage": coverage, "accuracy_answered": accuracy}
    return decided(rule, abstain_angle_deg=limit), figures


def patients_of(cines: Sequence[LabelledCine], crops: DefectCrops) -> tuple[list[str], Tensor]:
    """Return the patients of some cines and (P,) the class ids of their defects: one seen in any cine is theirs."""
    told = patient_defects((cine.patient_id, cine.annotation.defect) for cine in cines)
    said = {patient: crops.classes.index(defect) for patient, defect in told.items() if defect is not None}
    return list(said), torch.tensor(list(said.values()), dtype=torch.long)


def majority_class(crops: DefectCrops, cines: Sequence[LabelledCine]) -> int:
    """Return the class of most training patients: the constant answer."""
    _, labels = patients_of(cines, crops)
    return int(torch.bincount(labels, minlength=len(crops.classes)).argmax())


@torch.no_grad()
def measure_on_test(
    rule: DefectRule, embedded: EmbeddedCrops, crops: DefectCrops, majority: int, split: str, seed: int
) -> dict[str, Metric]:
    """Return the figures by cine, of those in which the wall in question is to be seen, and by patient."""
    classes = [defect.value for defect in crops.classes]
    truth = crops.truths(embedded.cines, rule.embedder.config.cropping)
    known = torch.where(truth >= 0)[0]
    patients, patient_truth = patients_of(embedded.cines, crops)
    by_patient = embedded.of_patients(rule, patients).numpy()
    alone = classification_metrics(
        Cohort(tuple(patients), split, seed), patient_truth.numpy(), by_patient, classes=classes, majority_id=majority
    )
    metrics = {f"{name} (patients)": metric for name, metric in alone.items()}
    if len(known):
        owners = tuple(embedded.cines[number].patient_id for number in known.tolist())
        probabilities = rule.probabilities(embedded.of_cines(rule)[1][known]).double().numpy()
        metrics |= classification_metrics(
            Cohort(owners, split, seed), truth[known].numpy(), probabilities, classes=classes, majority_id=majority
        )
    return metrics


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
    validate: Callable[[DefectEmbedder], float],
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


PLAIN = 0.1
"""Part of the training crops whose look is left as it is."""


def train_defects(
    studies: Path,
    models: Path,
    options: DefectOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
) -> ModelCard:
    """Train the defect embedder on the cines of ``studies`` that have a defect label and septal boxes, and publish it.

    Children whose cines name different defects are left out.

    Raises
    ------
    TrainingDataError
        If fewer than three patients have both, or a part of the split has none, or none that shows its label.
    ModelNotFoundError, ModelMismatchError
        If the weights to begin with, named by ``options.start``, are absent or do not fit.
    TrainingUnderWayError
        If the embedder of that folder is being trained already.
    """
    labelled = without_several_defects(open_labelled_folder(studies))
    with begun_training(options, DEFECT_EMBEDDER, models) as options:
        return _train(labelled, models, options, on_epoch, progress)


def _train(
    labelled: LabelledFolder,
    models: Path,
    options: DefectOptions,
    on_epoch: OnEpoch | None,
    progress: Progress | None,
) -> ModelCard:
    torch.manual_seed(options.seed)
    recipe, known = chosen_recipe(options), known_classes(models, options)
    cropping = recipe.network.cropping
    cines = [cine for cine in labelled.cines if cine.annotation.defect and boxes_to_crop(cine, cropping)]
    classes = defect_classes(cines, known)
    config = dataclasses.replace(recipe.network, classes=len(classes))
    model = DefectEmbedder(config)
    start = load_beginning(model, models, options, [defect.value for defect in classes])
    origin = origin_of(cines, labelled, start, models, options.seed)
    crops, parts = _prepared(origin, recipe, known, options, progress)
    move_to_device(model, choose_device(options.device))
    kept = state_path(models, DEFECT_EMBEDDER), data_key(cines, origin.split, options, (config, classes))
    rule = beginning_rule(model, crops, parts["train"], recipe)
    learned = learn_defects(rule, crops, parts, optimisation(recipe, start, options), options, on_epoch, kept)
    learned = with_new_head(rule, crops, parts, learned, recipe, options, known)
    embedded = {part: embed_crops(model, crops, parts[part]) for part in ("validation", "test")}
    model.float().cpu()
    rule, figures = choose_on_validation(rule, embedded["validation"], crops)
    majority = majority_class(crops, parts["train"])
    metrics = measure_on_test(rule, embedded["test"], crops, majority, words_for_test(labelled), options.seed)
    card = build_card(
        origin,
        learned,
        options,
        models,
        name=DEFECT_EMBEDDER,
        task="classification",
        architecture=f"{config.backbone}, {config.embedding_size}-d embedding, {config.head}",
        classes=tuple(defect.value for defect in classes),
        network=model.config,
        decision=rule.decision,
        majority_id=majority,
        validation={"measure": learned.best_metric, **figures},
        metrics=metrics,
    )
    return publish_learned(models, learned, card)


def _prepared(
    origin: Origin, recipe: DefectRecipe, known: Sequence[str], options: DefectOptions, progress: Progress | None
) -> tuple[DefectCrops, dict[str, list[LabelledCine]]]:
    """Return the crops that the recipe cuts, and the readable cines of each part; ``known`` : as `defect_classes`."""
    parts = origin.parts("a defect and boxes")
    with first_process_first():
        crops = prepare_defect_crops(
            origin.labelled,
            origin.cines,
            size_px=recipe.network.input_size_px,
            cropping=recipe.network.cropping,
            frames_per_cine=recipe.frames_per_cine,
            cache_dir=options.cache_dir,
            progress=progress,
            known=known,
        )
    parts = crops.frames.readable(parts)
    require_shown(crops, parts, recipe.network.cropping)
    return crops, parts


def load_beginning(model: DefectEmbedder, models: Path, options: DefectOptions, classes: Sequence[str] = ()) -> Start:
    """Load what the training begins with, the published weights of a face network included; as `load_start`."""
    if options.start == "face":
        options = dataclasses.replace(options, start=str(face_file(model.config.backbone)))
    return load_start(model, DEFECT_EMBEDDER, models, options, classes)


def beginning_rule(
    model: DefectEmbedder, crops: DefectCrops, taught: Sequence[LabelledCine], recipe: DefectRecipe
) -> DefectRule:
    """Return the rule before validation patients have chosen: what training labels, of ``taught``, say of it."""
    shares = shown_shares(crops, taught)
    decision = DefectDecision(focus=recipe.focus, shown_share=shares, context_margin=CONTEXT_MARGIN)
    return DefectRule(model, decision, crops.classes.index(Defect.NORMAL))


def learn_defects(
    rule: DefectRule,
    crops: DefectCrops,
    parts: dict[str, list[LabelledCine]],
    recipe: Recipe,
    options: DefectOptions,
    on_epoch: OnEpoch | None,
    kept: tuple[Path, str] | None,
) -> Learned:
    """Train the network of ``rule`` on the crops of the training cines.

    ``kept`` : where its state is kept, and what it is of.
    """
    items = crops.frames.of(parts["train"])
    items = items[crops.is_example[items]]
    truth = crops.truths(parts["validation"], rule.embedder.config.cropping)
    weight = 0.0 if options.recipe == "paper" else 0.1
    batch_size = options.batch_size or chosen_recipe(options).batch_size
    return run_epochs(
        rule.embedder,
        recipe,
        batches=lambda g: balanced_batches(items, crops.cells[items], batch_size, g, power=1.0),
        loss=lambda m, chosen, g: _loss(m, crops.frames.pixels[chosen], crops.labels[chosen], g),
        validate=lambda m: _validate(
            replace(rule, embedder=m), crops, parts["validation"], truth, log_loss_weight=weight
        ),
        seed=options.seed,
        on_epoch=on_epoch,
        should_stop=options.should_stop,
        state_path=kept[0] if kept else None,
        state_key=kept[1] if kept else "",
        log_dir=options.log_dir and options.log_dir / DEFECT_EMBEDDER,
    )


def with_new_head(
    rule: DefectRule,
    crops: DefectCrops,
    parts: dict[str, list[LabelledCine]],
    learned: Learned,
    recipe: DefectRecipe,
    options: DefectOptions,
    known: Sequence[str] = (),
) -> Learned:
    """Learn the head anew where the recipe wants it, and return what is then learned.

    A head that knows a class (``known``) of which no training cine is an example is kept: no other would know it.
    """
    model = rule.embedder
    items = crops.frames.of(parts["train"])
    taught = {crops.classes[label].value for label in crops.labels[items[crops.is_example[items]]].tolist()}
    if not recipe.head_steps or set(known) - taught:
        return learned
    truth = crops.truths(parts["validation"], model.config.cropping)
    measure = renew_head(
        model,
        crops,
        items[crops.is_example[items]],
        steps=recipe.head_steps,
        seed=options.seed,
        validate=lambda m: _validate(replace(rule, embedder=m), crops, parts["validation"], truth, 0.1),
    )
    state = as_published(model.state_dict())
    model.load_state_dict(state)
    return dataclasses.replace(learned, state=state, best_metric=measure)


def _loss(model: DefectEmbedder, wide: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of wide crops (N, S', S') uint8, each moved and cut at random."""
    device = model.centres.device
    size, wide_size = model.config.input_size_px, wide.shape[-1]
    pixels = wide.to(device).float().div_(255)[:, None]
    moves = random_affines(len(wide), wide_size, CROP_MOTION, generator)
    pixels = warp(pixels, compose(centre_affines(len(wide), wide_size, size), moves), size)
    is_plain = (torch.rand(len(wide), generator=generator) < PLAIN).to(device)[:, None, None, None]
    pixels = torch.where(is_plain, pixels, change_appearance(pixels, generator))
    inputs = normalise(pixels[:, 0] * 255).contiguous(memory_format=torch.channels_last)
    with lower_precision(device):
        embeddings = model(inputs)
    return model.loss(embeddings.float(), labels.to(device))


@torch.no_grad()
def _validate(
    rule: DefectRule, crops: DefectCrops, cines: Sequence[LabelledCine], truth: Tensor, log_loss_weight: float
) -> float:
    """Return balanced accuracy less a tenth of the log loss, which moves where few cines leave the accuracy still.

    The paper has the accuracy alone (``log_loss_weight`` 0).
    """
    embedded = embed_crops(rule.embedder, crops, cines)
    known = truth >= 0
    probabilities = rule.probabilities(embedded.of_cines(rule)[1])[known]
    labels = truth[known]
    right = (probabilities.argmax(dim=1) == labels).float()
    log_loss = -probabilities[torch.arange(len(labels)), labels].clamp_min(1e-6).log().mean()
    if not log_loss_weight:
        return float(right.mean())
    recalls = [float(right[labels == k].mean()) for k in torch.unique(labels).tolist()]
    return float(np.mean(recalls)) - log_loss_weight * float(log_loss)
