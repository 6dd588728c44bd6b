# SPDX-License-Identifier: Apache-2.0
"""Training the view classifier: which cines teach it, its network, open-set rule and figures.

How it learns is in ``view_stages``. Beside the figures stands a logistic regression on what a frozen encoder
says of frames: how much its features hold before any fine-tuning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from echo_plugin.anatomy import VIEW_VOCABULARIES, View, vocabulary_name
from echo_plugin.answer.preprocess import normalise
from echo_plugin.answer.runtime import choose_device
from echo_plugin.answer.views import choose_rule, cine_scores
from echo_plugin.errors import TrainingDataError
from echo_plugin.geometry import FloatArray
from echo_plugin.measure.classes import Cohort, classification_metrics
from echo_plugin.model_card import Metric, ModelCard, OpenSetRule, ViewDecision
from echo_plugin.models.checkpoint import VIEW_CLASSIFIER
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import ViewConfig
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import LabelledCine, LabelledFolder, open_labelled_folder
from echo_plugin.training.loop import lower_precision, move_to_device, state_path
from echo_plugin.training.options import OnEpoch, ViewOptions
from echo_plugin.training.processes import first_process_first
from echo_plugin.training.provenance import Origin, build_card, data_key, origin_of, publish_learned, words_for_test
from echo_plugin.training.start import Start, begun_training, load_start
from echo_plugin.training.view_stages import (
    ClipChoice,
    ClipTable,
    cine_logits,
    cine_probabilities,
    learn_views,
    learned_times,
    view_recipe,
)


@torch.no_grad()
def encoder_features(model: ViewClassifier, pixels: Tensor, *, batch_size: int = 64) -> FloatArray:
    """Return the (N, D) embeddings of (N, S, S) uint8 frames."""
    device = model.frame_head.weight.device
    model.eval()
    rows = []
    for batch in torch.split(pixels, batch_size):
        with lower_precision(device):
            rows.append(model.features(normalise(batch.to(device))).float().cpu())
    features: FloatArray = torch.cat(rows).double().numpy()
    return features


def linear_probe(features: FloatArray, labels: NDArray[np.int_], others: FloatArray) -> NDArray[np.int_]:
    """Return the (M,) classes of ``others`` (M, D) by a logistic regression of (N, D) features with (N,) labels.

    Features are scaled to unit deviation first; scikit-learn's own regularisation is left as it is.

    Raises
    ------
    ValueError
        If all labels are the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        msg = f"A probe learns from {len(labels)} frames of one class only; two classes at least are accepted."
        raise ValueError(msg)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    answers: NDArray[np.int_] = regression.fit(features, labels).predict(others)
    return answers


def linear_probe_metrics(
    model: ViewClassifier, table: ClipTable, patients: Sequence[str], *, words: str, seed: int
) -> dict[str, Metric]:
    """Return the accuracy of a probe of training patients' frames on test patients', one frame of each clip.

    Beside it stands what the commonest training class scores. ``patients`` : of the cines that ``table.cine`` counts.
    {}: all training frames are of one class.
    """
    train, test = table.parts["train"], table.parts["test"]
    labels, truth = table.labels[train].numpy(), table.labels[test].numpy()
    if len(np.unique(labels)) < 2:
        return {}
    features, others = (encoder_features(model, table.pixels[table.frames[clips, 0]]) for clips in (train, test))
    right = linear_probe(features, labels, others) == truth
    cohort = Cohort(tuple(patients[cine] for cine in table.cine[test].tolist()), words, seed)
    baseline = float((truth == np.bincount(labels).argmax()).mean())
    return {"linear probe accuracy": cohort.mean(right.astype(np.float64), baseline)}


logger = logging.getLogger(__name__)


def cines_of_views(labelled: LabelledFolder, vocabulary: Sequence[View]) -> tuple[LabelledCine, ...]:
    """Return the cines whose labelled view is in ``vocabulary``; a warning counts those of other views."""
    words = words_for_other_views(labelled, vocabulary)
    if words:
        logger.warning("%s", words)
    return tuple(cine for cine in labelled.cines if cine.annotation.view in vocabulary)


def words_for_other_views(labelled: LabelledFolder, vocabulary: Sequence[View]) -> str:
    """Return a sentence that counts the cines of views outside ``vocabulary``, by view; "" if there are none."""
    views = [cine.annotation.view for cine in labelled.cines]
    others = Counter(view for view in views if view is not None and view not in vocabulary)
    if not others:
        return ""
    by_name = sorted((view.value, count) for view, count in others.items())
    counts = ", ".join(f"{name} {count}" for name, count in by_name)
    names = [view.value for view in vocabulary]
    having = [word for word, known in VIEW_VOCABULARIES.items() if others.keys() & set(known)]
    hint = f"; --vocabulary {' or '.join(having)} has some of them" if having else ""
    named = vocabulary_name(names) or ", ".join(names)
    return f"{others.total()} cines are left out, whose views the vocabulary {named} lacks ({counts}){hint}."


CLIPS_PER_CINE = 4
DEFAULT_VOCABULARY = "paediatric"


def train_views(
    studies: Path,
    models: Path,
    options: ViewOptions,
    on_epoch: OnEpoch | None = None,
    progress: Progress | None = None,
    *,
    vocabulary: tuple[View, ...] | None = None,
) -> ModelCard:
    """Train the view classifier on the cines of ``studies`` whose view is labelled and in the vocabulary; publish it.

    ``vocabulary`` : the views to tell apart, in class-id order; None: that which ``options`` names.

    Raises
    ------
    TrainingDataError
        If fewer than three patients have such a cine, or a part of the split has none.
    TrainingUnderWayError
        If the classifier of that folder is being trained already.
    """
    labelled = open_labelled_folder(studies)
    with begun_training(options, VIEW_CLASSIFIER, models) as options:
        return _train(labelled, models, options, on_epoch, progress, vocabulary=vocabulary)


def _train(
    labelled: LabelledFolder,
    models: Path,
    options: ViewOptions,
    on_epoch: OnEpoch | None,
    progress: Progress | None,
    *,
    vocabulary: tuple[View, ...] | None,
) -> ModelCard:
    torch.manual_seed(options.seed)
    vocabulary = vocabulary or _vocabulary(options)
    config = view_config(options, len(vocabulary))
    model = ViewClassifier(config)
    classes = tuple(view.value for view in vocabulary)
    start = load_start(model, VIEW_CLASSIFIER, models, options, classes)
    origin = _origin(labelled, vocabulary, start, models, options.seed)
    cines, patients = origin.cines, [cine.patient_id for cine in origin.cines]
    taught = origin.parts("a view")["train"]
    choice = ClipChoice(config, learned_times(labelled, taught), (options.frames_per_cine or CLIPS_PER_CINE,))
    table = _clips(origin, choice, vocabulary, options.cache_dir, progress)
    move_to_device(model, choose_device(options.device))
    numbers = (config, options.mirror, choice.facts)
    kept = state_path(models, VIEW_CLASSIFIER), data_key(cines, origin.split, options, numbers)
    words, is_going_on = words_for_test(labelled), start.rate_for(VIEW_CLASSIFIER) < 1
    probed = {}
    if start.words and not is_going_on:  # an encoder that has not been taught views
        probed = linear_probe_metrics(model, table, patients, words=words, seed=options.seed)
    learned = learn_views(model, table, options, is_going_on=is_going_on, kept=kept, on_epoch=on_epoch)
    metrics = _measure(model, table, classes, patients, words=words, seed=options.seed) | probed
    card = build_card(
        origin,
        learned,
        options,
        models,
        name=VIEW_CLASSIFIER,
        task="view",
        architecture=f"{config.backbone}, {config.temporal} of {config.frames_per_clip} {config.sampling} frames",
        classes=classes,
        network=model.config,
        decision=ViewDecision(open_set_rule(model, table, classes, cines), choice.times),
        majority_id=_majority(table, model.config.classes),
        validation={"measure": learned.best_metric},
        metrics=metrics,
    )
    return publish_learned(models, learned, card)


def _origin(labelled: LabelledFolder, vocabulary: Sequence[View], start: Start, models: Path, seed: int) -> Origin:
    """Return the origin of a model of ``vocabulary``; too few patients are told with the cines that it leaves out."""
    cines = cines_of_views(labelled, vocabulary)
    try:
        return origin_of(cines, labelled, start, models, seed)
    except TrainingDataError as exc:
        others = words_for_other_views(labelled, vocabulary)
        if not others:
            raise
        msg = f"{exc} {others}"
        raise TrainingDataError(msg) from exc


def _vocabulary(options: ViewOptions) -> tuple[View, ...]:
    """Return the views that the options name; the fetal paper's recipe has its own."""
    is_fetal = options.recipe == "usf-mae" and options.vocabulary is None
    return VIEW_VOCABULARIES["fetal-5" if is_fetal else options.vocabulary or DEFAULT_VOCABULARY]


def _clips(
    origin: Origin,
    choice: ClipChoice,
    vocabulary: tuple[View, ...],
    cache_dir: Path | None,
    progress: Progress | None,
) -> ClipTable:
    """Return the clips of all cines, which the table counts as the origin does."""
    with first_process_first():
        frames = choice.prepare(origin.labelled, origin.cines, cache_dir, progress)
    labels = torch.tensor([vocabulary.index(cine.annotation.view) for cine in origin.cines if cine.annotation.view])
    parts = frames.readable(origin.parts("a view"))
    return ClipTable.of(frames, choice.config.frames_per_clip, labels, parts)


def view_config(options: ViewOptions, classes: int) -> ViewConfig:
    """Return the network that the options ask for: the image classifier is the mean over clips of one frame."""
    defaults = ViewConfig(classes=classes)
    is_of_paper = options.recipe == "usf-mae"  # the fetal paper's classifier of single frames
    if is_of_paper:
        defaults = replace(defaults, backbone="vit_base_patch16", input_size_px=224, border=view_recipe(options).border)
    return replace(
        defaults,
        backbone=options.backbone or defaults.backbone,
        input_size_px=options.image_size or defaults.input_size_px,
        temporal="mean" if options.is_of_one_frame else options.temporal or defaults.temporal,
        frames_per_clip=1 if options.is_of_one_frame else options.frames_per_clip or defaults.frames_per_clip,
        chunks=options.chunks or defaults.chunks,
        sampling=options.sampling or defaults.sampling,
        is_standardised=not is_of_paper,
        stem_dropout=0.1,  # the paper's 0.5 is for its 60 epochs of 800 clips and hundreds of epochs' worth of rotation
    )


def open_set_rule(
    model: ViewClassifier, table: ClipTable, classes: Sequence[str], cines: Sequence[LabelledCine]
) -> OpenSetRule | None:
    """Return what tells, by the validation patients, that a cine shows no standard view; None: nothing can.

    ``cines`` : those that ``table.cine`` counts. Stills set no limit, for none is asked of them (``answer_view``).
    """
    chosen = table.parts["validation"]
    is_moving = torch.tensor([cines[i].frame_count > 1 for i in table.cine[chosen].tolist()], dtype=torch.bool)
    if not is_moving.any():
        return None
    moving = replace(table, parts={"validation": chosen[is_moving]})
    logits, truth, _ = cine_logits(model, moving, "validation", "clips")
    answers = np.array([clips.mean(axis=0).argmax() for clips in logits])
    is_other = np.array([classes[view] == View.OTHER.value for view in truth])
    return choose_rule([cine_scores(clips, classes) for clips in logits], answers == truth, is_other)


def _measure(
    model: ViewClassifier,
    table: ClipTable,
    classes: Sequence[str],
    patients: Sequence[str],
    *,
    words: str,
    seed: int,
) -> dict[str, Metric]:
    """Return the figures on test patients; ``patients`` are of the cines that ``table.cine`` counts."""
    probabilities, truth, members = cine_probabilities(model, table, "test", "clips")
    majority = _majority(table, len(classes))
    cohort = Cohort(tuple(patients[i] for i in members), words, seed)
    return classification_metrics(cohort, truth, probabilities, classes=classes, majority_id=majority)


def _majority(table: ClipTable, classes: int) -> int:
    return int(torch.bincount(table.labels[table.parts["train"]], minlength=classes).argmax())
