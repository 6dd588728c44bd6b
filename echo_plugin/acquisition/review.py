# SPDX-License-Identifier: Apache-2.0
"""Which labels of a study folder look like mistakes, judged by detectors that did not learn from the patient.

Two ways to come by such detectors: train one for each fold of patients (`fold_judges`), or take the published one for
the patients that its card does not list as learned from (`published_judge`). For people there are a table and a page
with the most doubtful frames; the server's strategy ``suspicious`` finds the judgements with the scores of the folder.

How well annotators agree comes from the history of revisions: of each annotator the last counts. Whoever came second
saw what the first had drawn, so these figures say how much was changed, not what two people would draw by themselves.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg

from echo_plugin.acquisition.label_quality import (
    Confirmed,
    FrameQuality,
    JudgedCine,
    LabelJudge,
    detect_each,
    judge_label,
    unseen_cines,
)
from echo_plugin.acquisition.score_store import REVIEW, SCORES_FILE, Judgement, ScoreStore
from echo_plugin.acquisition.uncertainty import calibrate
from echo_plugin.anatomy import DETECTED_SEPTA
from echo_plugin.annotations import Annotation
from echo_plugin.answer.preprocess import to_model_input
from echo_plugin.durable import make_directory, write_atomically
from echo_plugin.errors import AnnotationError, EchoError, TrainingDataError
from echo_plugin.evaluate.report import Picture, draw_pictures
from echo_plugin.geometry import box_iou
from echo_plugin.io.annotation_store import annotation_to_json
from echo_plugin.io.patients_file import PATIENTS_FILE
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import ANNOTATIONS_DIRECTORY
from echo_plugin.measure.boxes import FrameBoxes
from echo_plugin.model_card import STARTERS, load_card
from echo_plugin.models.checkpoint import SEPTAL_DETECTOR
from echo_plugin.progress import Progress
from echo_plugin.training.datasets import (
    LabelledCine,
    LabelledFolder,
    detection_frames,
    open_judgeable_folder,
    unsought_labels,
)
from echo_plugin.training.options import DetectorOptions, EpochStatus
from echo_plugin.training.provenance import known_patients, names_its_patients

logger = logging.getLogger(__name__)

PICTURES = 24
"""At most so many doubtful frames are drawn."""
DRAWN_FROM = 0.3
"""Score from which a detection is drawn."""


@dataclass(frozen=True)
class Agreement:
    """Over all pairs of annotators and cines; None: nothing to compare.

    ``cines``, ``pairs``, ``frames`` : how many. ``mean_iou`` : of boxes of the same septum on the same frame. ``kappa``
    : Cohen's, by what is labelled: whether a septum is on a frame, the view, the defect.
    """

    cines: int
    pairs: int
    frames: int
    mean_iou: float | None
    kappa: dict[str, float | None]


def agreement(histories: Iterable[Sequence[Annotation]]) -> Agreement:
    """Return the agreement in the histories of several cines."""
    cines = pairs = frames = 0
    overlaps: list[float] = []
    names = [*(septum.value for septum in DETECTED_SEPTA), "view", "defect"]
    answers: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for history in histories:
        by_author = {annotation.author: annotation for annotation in history if annotation.author}
        between = list(combinations(by_author.values(), 2))
        cines += bool(between)
        pairs += len(between)
        for one, other in between:
            common = sorted(set(one.annotated_frames) & set(other.annotated_frames))
            frames += len(common)
            for frame in common:
                overlaps += _compare_frame(one, other, frame, answers)
            for name in ("view", "defect"):
                labels = (getattr(one, name), getattr(other, name))
                if None not in labels:
                    answers[name].append((labels[0].value, labels[1].value))
    kappa = {name: cohens_kappa(given) for name, given in answers.items()}
    return Agreement(cines, pairs, frames, float(np.mean(overlaps)) if overlaps else None, kappa)


def _compare_frame(
    one: Annotation, other: Annotation, frame: int, answers: dict[str, list[tuple[str, str]]]
) -> list[float]:
    """Return the IoUs of one frame and add to ``answers``; a septum that either did not look for is left out."""
    overlaps = []
    unsought = {label for annotation in (one, other) for label in unsought_labels(annotation, frame)}
    for label, septum in enumerate(DETECTED_SEPTA):
        if label in unsought:
            continue
        boxes = [[box.xyxy for box in a.boxes_on(frame) if box.septum is septum] for a in (one, other)]
        answers[septum.value].append(("box" if boxes[0] else "none", "box" if boxes[1] else "none"))
        if all(boxes):
            overlaps.append(float(box_iou(np.array(boxes[0]), np.array(boxes[1])).max()))
    return overlaps


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of pairs of answers: agreement beyond chance, 1 at most; None: no pairs.

    Where both always gave one and the same answer, chance explains everything and kappa is not defined: None too.
    """
    from sklearn.metrics import cohen_kappa_score  # slow to import; only a review asks

    if len({answer for pair in pairs for answer in pair}) < 2:
        return None
    first, second = zip(*pairs, strict=True)
    return float(cohen_kappa_score(first, second))


TrainFold = Callable[[Sequence[str], Path, Progress], None]
"""(patients to learn from, folder to publish to, who is told how far it is): trains on these patients, on nobody else.
"""

JudgeOf = Callable[[LabelledFolder], Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]]
"""Yields detectors with the cines each may judge."""


@dataclass(frozen=True)
class Doubt:
    """One annotated cine: the judgement, the frames with labels and detections, and the quality of each frame."""

    judgement: Judgement
    judged: JudgedCine
    quality: FrameQuality


@dataclass(frozen=True)
class Review:
    """``doubts`` : the most doubtful first. ``confirmed`` : of labels that a person looked at again, doubted no more.

    ``left_out`` : how many labelled cines no detector here may or can judge. ``folder`` : with the cines, for pictures.
    """

    doubts: tuple[Doubt, ...]
    confirmed: tuple[Doubt, ...]
    left_out: int
    agreement: Agreement
    is_phantom: bool
    judges: str
    folder: StudyFolder


def split_folds(patients: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Return the patients in ``count`` folds of nearly equal size, drawn by ``seed``; each patient is in one.

    Raises
    ------
    TrainingDataError
        If there are fewer patients than folds, or fewer than two folds.
    """
    patients = sorted(set(patients))
    if not 2 <= count <= len(patients):
        msg = f"{len(patients)} patients cannot be reviewed in {count} folds; 2 to as many as there are patients can."
        raise TrainingDataError(msg)
    shuffled = np.random.default_rng(seed).permutation(np.array(patients, dtype=object))
    return [tuple(sorted(fold)) for fold in np.array_split(shuffled, count)]


def review(
    studies: Path,
    judge_of: JudgeOf,
    *,
    judges: str,
    progress: Progress | None = None,
) -> Review:
    """Return what is doubtful in the labels of a study folder.

    Parameters
    ----------
    judge_of
        See ``published_judge`` and ``fold_judges``.
    judges
        What the detectors are, in words.

    Raises
    ------
    TrainingDataError
        If there is nothing that may be judged.
    """
    labelled, damaged = open_judgeable_folder(studies)
    wanted = [cine for cine in labelled.cines if detection_frames(cine, 1)]
    judged: list[JudgedCine] = []
    for judge, cines in judge_of(labelled):
        for one in detect_each(judge, labelled, cines):
            judged.append(one)
            if progress is not None:
                progress(len(judged), len(wanted), "judging labels")
    if not judged:
        msg = (
            f"Study folder {studies} has no label that may be judged: the published detector learned from every"
            " patient with boxes; judge by folds instead (--predictions folds)."
        )
        raise TrainingDataError(msg)
    is_confirmed = Confirmed(labelled.folder)
    doubts: dict[bool, list[Doubt]] = {False: [], True: []}
    for doubt in _ranked(judged):
        doubts[is_confirmed(doubt.judgement.image_id, doubt.judgement.revision)].append(doubt)
    return Review(
        tuple(doubts[False]),
        tuple(doubts[True]),
        len(wanted) - len(judged) + damaged,
        agreement(_histories(labelled)),
        labelled.is_phantom,
        judges,
        labelled.folder,
    )


def _ranked(judged: Sequence[JudgedCine]) -> list[Doubt]:
    """Return all of them by one calibration, the most doubtful first."""
    calibration = calibrate(judged[0].operating_score, [one.matches for one in judged])
    doubts = []
    for one in judged:
        judgement, quality = judge_label(one, calibration)
        doubts.append(Doubt(judgement, one, quality))
    return sorted(doubts, key=lambda doubt: (doubt.judgement.quality, doubt.judgement.image_id))


def _histories(labelled: LabelledFolder) -> Iterator[Sequence[Annotation]]:
    for cine in labelled.cines:
        try:
            yield labelled.folder.history(cine.image_id)
        except AnnotationError as exc:
            logger.warning("Annotators of %s are not compared: %s", cine.image_id, exc)


def published_judge(models: Path, device: str) -> JudgeOf:
    """Judge by the published detector the cines of patients it did not learn from.

    Raises
    ------
    TrainingDataError
        If its card does not say whom it learned from.
    """
    card = load_card(models, SEPTAL_DETECTOR)
    if not names_its_patients(card):
        msg = f"Model {card.name}: its card does not list whom it learned from, so it may judge nobody; use folds."
        raise TrainingDataError(msg)

    def judges(labelled: LabelledFolder) -> Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]:
        yield LabelJudge(models, device=device), unseen_cines(card, labelled)

    return judges


def fold_judges(train: TrainFold, folds: int, *, seed: int, device: str, progress: Progress | None = None) -> JudgeOf:
    """Judge every cine by a detector trained on the patients of the other folds; ``progress`` is told of trainings."""

    def judges(labelled: LabelledFolder) -> Iterator[tuple[LabelJudge, Sequence[LabelledCine]]]:
        wanted = [cine for cine in labelled.cines if detection_frames(cine, 1)]
        patients = [cine.patient_id for cine in wanted]
        for number, fold in enumerate(split_folds(patients, folds, seed), start=1):
            others = sorted(set(patients) - set(fold))
            # only this user reads it: fold detectors learned from patients
            with tempfile.TemporaryDirectory(prefix="monailabel-echo-review-") as models:
                train(others, Path(models), _of_fold(progress, number, folds))
                yield LabelJudge(Path(models), device=device), [c for c in wanted if c.patient_id in fold]

    return judges


def _of_fold(progress: Progress | None, number: int, folds: int) -> Progress:
    """Return what tells ``progress`` besides which fold it is."""

    def tell(done: int, total: int, note: str) -> None:
        if progress is not None:
            progress(done, total, f"fold {number} of {folds}, {note}")

    return tell


def to_json(result: Review) -> Mapping[str, object]:
    """Return the review for programs; no patient is named."""
    return {
        "on_phantoms": result.is_phantom,
        "judges": result.judges,
        "left_out": result.left_out,
        "confirmed": len(result.confirmed),
        "cines": [
            {
                "image_id": doubt.judgement.image_id,
                "revision": doubt.judgement.revision,
                "author": doubt.judged.cine.annotation.author,
                "quality": round(doubt.judgement.quality, 4),
                "frames": list(doubt.judgement.frames),
                "doubt": doubt.judgement.words,
                "by_frame": {
                    str(frame): {kind: round(float(scores[n]), 4) for kind, scores in doubt.quality.by_kind.items()}
                    for n, frame in enumerate(doubt.judged.frame_indices)
                },
            }
            for doubt in result.doubts
        ],
        "agreement": asdict(result.agreement),
    }


def keep_judgements(studies: Path, result: Review) -> None:
    """Keep the judgements of a review; a study folder that cannot be written to goes without, with a warning."""
    try:
        store = ScoreStore(studies / SCORES_FILE)
    except (sqlite3.Error, OSError) as exc:
        logger.warning("The review is not kept for the server: %s cannot be written (%s)", SCORES_FILE, exc)
        return
    for doubt in (*result.doubts, *result.confirmed):
        store.judge(replace(doubt.judgement, models=f"{REVIEW} {doubt.judgement.models}"))


def train_folds(studies: Path, models: Path, options: DetectorOptions) -> TrainFold:
    """Return what trains a detector on given patients of a study folder.

    It goes on from the detector in ``models`` where that has seen none of the folder's patients, else from the starter
    weights where those have not, else from nothing: a detector that began with one that knows a patient may not judge
    that patient.
    """
    labelled, _ = open_judgeable_folder(studies)
    begin = next((folder for folder in (models, STARTERS) if _is_stranger(folder, labelled)), None)
    start = "scratch" if begin is None else "starter"
    logger.info("Detectors of the folds start from %s", begin or start)

    def train(patients: Sequence[str], publish_to: Path, progress: Progress) -> None:
        from echo_plugin.training.detector import train_detector

        def on_epoch(status: EpochStatus) -> None:
            progress(status.epoch, status.total_epochs, "epochs")

        with tempfile.TemporaryDirectory(prefix="monailabel-echo-fold-") as folder:
            link_cines(labelled, patients, Path(folder))
            with_start = replace(options, start=start, starter=begin)
            train_detector(Path(folder), publish_to, with_start, on_epoch=on_epoch, progress=progress)

    return train


def _is_stranger(models: Path, labelled: LabelledFolder) -> bool:
    try:
        card = load_card(models, SEPTAL_DETECTOR)
    except EchoError:
        return False
    patients = sorted({cine.patient_id for cine in labelled.cines})
    return names_its_patients(card) and not known_patients(card, patients)


def link_cines(labelled: LabelledFolder, patients: Sequence[str], folder: Path) -> None:
    """Fill ``folder`` with links to the labelled cines of these patients, their labels, and patients.csv."""
    root = labelled.folder.root
    annotations = folder / ANNOTATIONS_DIRECTORY
    annotations.mkdir()
    if (root / PATIENTS_FILE).is_file():
        shutil.copy(root / PATIENTS_FILE, folder / PATIENTS_FILE)
    for cine in labelled.of_patients(patients):
        source = labelled.folder.entry(cine.image_id).path
        link = folder / source.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(source)
        except OSError:  # Windows lets few users make links
            shutil.copy(source, link)
        text = annotation_to_json(cine.annotation)
        (annotations / f"{cine.image_id}.json").write_text(text, encoding="utf-8")


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Labels to look at again</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ccc }
td.number { text-align: right; font-variant-numeric: tabular-nums } img { max-width: 100% }
.warning { background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #b8860b }
</style></head><body>
<h1>Labels to look at again</h1>
{% if review.on_phantoms %}<p class="warning">Labels of phantoms: synthetic cines.</p>{% endif %}
<p>{{ review.cines|length }} labelled cines, judged by {{ review.judges }}; {{ review.left_out }} could not be judged.
{% if review.confirmed %}Confirmed labels, looked at again by a person, are not listed: {{ review.confirmed }}.
{% endif -%}
Quality runs from 0 to 1; a low one means that label and detector disagree, and either may be wrong.
Dashed: the label. Solid: the detector.</p>
<p><img src="data:image/png;base64,{{ picture }}" alt="The most doubtful frames"></p>
<table><thead><tr><th>cine</th><th>quality</th><th>frames (0-based)</th><th>doubt</th><th>author</th><th>revision</th>
</tr></thead><tbody>
{% for cine in review.cines %}<tr><td>{{ cine.image_id }}</td><td class="number">{{ "%.2f"|format(cine.quality) }}</td>
<td>{{ cine.frames|join(", ") }}</td><td>{{ cine.doubt }}</td><td>{{ cine.author or "–" }}</td>
<td class="number">{{ cine.revision }}</td></tr>
{% endfor %}</tbody></table>
<h2>Agreement between annotators</h2>
{% if review.agreement.pairs %}<p>{{ review.agreement.cines }} cines with labels of several people,
{{ review.agreement.frames }} frames annotated by both of a pair. Whoever came second saw the first one's boxes.</p>
<table><tbody>{% if review.agreement.mean_iou is not none %}<tr><td>mean IoU of their boxes</td>
<td class="number">{{ "%.2f"|format(review.agreement.mean_iou) }}</td></tr>{% endif %}
{% for what, kappa in review.agreement.kappa.items() if kappa is not none %}<tr><td>Cohen's kappa, {{ what }}</td>
<td class="number">{{ "%.2f"|format(kappa) }}</td></tr>{% endfor %}</tbody></table>
{% else %}<p>No cine has labels of several people.</p>{% endif %}
</body></html>
"""


def write_review(out: Path, result: Review) -> None:
    """Write review.json and review.html, readable by this user only: the page shows patients' pictures."""
    make_directory(out)
    facts = to_json(result)
    html = Environment(autoescape=True).from_string(TEMPLATE).render(review=facts, picture=_worst_frames(result))
    for name, content in (("review.html", html), ("review.json", json.dumps(facts, indent=1) + "\n")):
        write_atomically(out / name, content.encode())
        (out / name).chmod(0o600)


def describe_review(result: Review, most: int = 20) -> str:
    """Return the most doubtful labels as a table for the terminal."""
    lines = [f"{'quality':>7}  {'cine':<64}  {'frames':<14}  doubt"]
    for doubt in result.doubts[:most]:
        one = doubt.judgement
        frames = ", ".join(map(str, one.frames))
        lines.append(f"{one.quality:7.2f}  {one.image_id:<64}  {frames:<14}  {one.words}")
    if result.confirmed:
        lines.append(f"Confirmed labels, looked at again by a person, are not listed: {len(result.confirmed)}")
    people = result.agreement
    if people.mean_iou is not None:
        lines.append(f"Boxes of {people.pairs} pairs of annotators: mean IoU {people.mean_iou:.2f}")
    return "\n".join(lines) + "\n"


def _worst_frames(result: Review) -> str:
    frames = [(float(q), doubt, n) for doubt in result.doubts for n, q in enumerate(doubt.quality.overall)]
    worst = sorted(frames, key=lambda frame: frame[0])[:PICTURES]
    figure = draw_pictures([_picture(result.folder, doubt, n, quality) for quality, doubt, n in worst])
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=80, bbox_inches="tight")
    return base64.b64encode(png.getvalue()).decode()


def _picture(folder: StudyFolder, doubt: Doubt, n: int, quality: float) -> Picture:
    """Return the ``n``-th judged frame with the best detection of each septum; it is read for this only."""
    found = doubt.judged.predictions[n]
    best = []
    for septum in np.unique(found.labels):
        of_septum = np.flatnonzero((found.labels == septum) & (found.scores >= DRAWN_FROM))
        best += [int(of_septum[found.scores[of_septum].argmax()])] if len(of_septum) else []
    detections = FrameBoxes(found.boxes[best], found.labels[best], found.scores[best])
    image_id, frame = doubt.judgement.image_id, doubt.judged.frame_indices[n]
    pixels, _ = to_model_input(folder.read_cine(image_id), [frame], doubt.judged.input_size_px)
    title = f"{image_id[-16:]} frame {frame}: {quality:.2f}\n{doubt.quality.doubts(n)}"
    return Picture(pixels[0].numpy(), doubt.judged.labels[n], detections, title)
