# SPDX-License-Identifier: Apache-2.0
"""Whoever is on a file that was learned from before it named anybody counts as learned from afterwards."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echo_plugin.anatomy import View
from echo_plugin.annotations import Annotation
from echo_plugin.errors import TrainingDataError
from echo_plugin.evaluate.held_out import choose_held_out
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.io.study_index import CineEntry
from echo_plugin.training.mae import train_mae
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.provenance import (
    FILES_KEY,
    NAMELESS_LIMITS,
    file_numbers,
    known_patients,
    pack_numbers,
    patients_by_copies,
    patients_on_nameless,
    seen_patients,
    unpack_numbers,
)
from echo_plugin.training.views import train_views

torch.set_num_threads(1)
OPTIONS = TrainOptions(
    epochs=1, batch_size=8, image_size=32, backbone="vit_micro_patch8", device="cpu", frames_per_cine=1
)
TWO = (View.A4C, View.PSAX_AV)
CASES = tuple(f"case{number}" for number in range(8))
NAMELESS = CASES[2:7]
"""Those of whom the autoencoder has pictures; most of them would otherwise be in any part."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two labelled stills of each of eight patients, named by patients.csv."""
    root, rng = tmp_path_factory.mktemp("nameless") / "study", np.random.default_rng(0)
    for case in CASES:
        (root / case).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 60, (40, 40), dtype=np.uint8)
            pixels[: 40 - 20 * number, :20] += 100
            Image.fromarray(pixels).save(root / case / f"{number}.png")
    folder, rows = StudyFolder(root), ["image_id,patient_id"]
    for image_id in folder.image_ids():
        rows.append(f"{image_id},{image_id[:5]}")
        view = TWO[int(image_id[-5])]
        folder.save_annotation(Annotation(image_id, view=view), author="t")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def pretrained(study, tmp_path_factory):
    """An autoencoder of one still of five of these patients, called otherwise and without a name."""
    raw, models = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("models")
    for number, case in enumerate(NAMELESS):
        shutil.copy(study / case / "0.png", raw / f"scan{number}.png")
    return train_mae([raw], models, OPTIONS), models


@pytest.fixture(scope="module")
def classified(study, pretrained):
    """A classifier of views that begins with it, beside it."""
    _, models = pretrained
    return train_views(study, models, dataclasses.replace(OPTIONS, start="mae"), vocabulary=TWO)


def entry(path, patient_id=None, image_id=None):
    return CineEntry(image_id or path.name, Path(path), patient_id)


def test_who_is_named_later_is_learned_from_and_nobody_else(classified, study):
    parts = known_patients(classified, CASES)

    assert {patient for patient, part in parts.items() if part == "train"} >= set(NAMELESS)
    assert {patient for patient, part in parts.items() if part != "train"} <= {"case0", "case1", "case7"}
    assert classified.training_data.split["test"] > 0 < classified.training_data.split["validation"]


def test_both_cards_say_that_nameless_files_were_learned_from(pretrained, classified):
    card, _ = pretrained

    assert card.config["files_without_patient"] == len(unpack_numbers(card.config[FILES_KEY])) == 5
    assert card.limits.endswith(NAMELESS_LIMITS)
    assert classified.limits.endswith(NAMELESS_LIMITS)
    assert classified.config[FILES_KEY] == card.config[FILES_KEY]
    assert classified.config["patient_salt"] == card.config["patient_salt"]


def test_nobody_on_a_nameless_file_measures_a_model_that_never_met_their_name(study, pretrained, tmp_path):
    _, models = pretrained
    three, strangers = ("case0", "case1", "case7"), tmp_path / "strangers"
    shutil.copytree(study, strangers)
    for case in NAMELESS:
        shutil.rmtree(strangers / case)
    shutil.copytree(models, tmp_path / "models")
    card = train_views(strangers, tmp_path / "models", dataclasses.replace(OPTIONS, start="mae"), vocabulary=TWO)

    chosen = choose_held_out(study, tmp_path / "models", [card.name], patients=None, wants=lambda cine: True)

    assert known_patients(card, NAMELESS) == {}
    assert {cine.patient_id for cine in chosen.cines} <= set(three)
    with pytest.raises(TrainingDataError, match="1 of the 1 patients to measure were learned from"):
        choose_held_out(study, tmp_path / "models", [card.name], patients=["case4"], wants=lambda cine: True)


def test_an_autoencoder_that_goes_on_keeps_what_it_saw(study, pretrained, tmp_path):
    before, models = pretrained
    shutil.copytree(models, tmp_path / "models")

    card = train_mae([study], tmp_path / "models", OPTIONS)

    assert card.config["files_without_patient"] == 0
    assert card.config[FILES_KEY] == before.config[FILES_KEY]
    assert known_patients(card, NAMELESS) == dict.fromkeys(NAMELESS, "train")


def test_the_card_of_files_that_all_name_somebody_says_nothing_of_the_kind(study, tmp_path):
    card = train_mae([study], tmp_path / "models", OPTIONS)

    assert FILES_KEY not in card.config
    assert NAMELESS_LIMITS not in card.limits
    assert seen_patients(card, CASES, StudyFolder(study).entries()) == seen_patients(card, CASES, ()) < set(CASES)


def test_a_picture_is_known_by_its_bytes_and_a_dicom_file_by_its_uid(pretrained, tmp_path):
    card, _ = pretrained
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"ONE")):
        (tmp_path / name).write_bytes(content)
    learned = [entry(tmp_path / "a"), entry(tmp_path / "gone", image_id="1.2.3"), entry(tmp_path / "absent")]
    numbers = file_numbers(learned, str(card.config["patient_salt"]))
    seen = dataclasses.replace(card, config={**card.config, FILES_KEY: pack_numbers(numbers)})

    asked = [
        entry(tmp_path / "b", "same bytes "),
        entry(tmp_path / "c", "other bytes"),
        entry(tmp_path / "c", "same uid", "1.2.3"),
        entry(tmp_path / "a", "other uid", "1.2.4"),
        entry(tmp_path / "b", None),
        entry(tmp_path / "absent", "absent"),
    ]

    assert len(numbers) == 2
    assert patients_on_nameless(seen, asked) == {"same bytes", "same uid"}


def test_a_file_is_read_once_however_many_cards_ask_and_again_when_it_was_written_anew(
    pretrained, tmp_path, monkeypatch
):
    card, _ = pretrained
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    (tmp_path / "a").write_bytes(b"one")
    numbers = [file_numbers([entry(tmp_path / "a")], salt) for salt in ("s1", "s2")]
    patients_on_nameless(card, [entry(tmp_path / "a", "Ada")])
    before = len(read)

    (tmp_path / "a").write_bytes(b"more than one")

    assert before == 1
    assert numbers[0] != numbers[1]
    assert file_numbers([entry(tmp_path / "a")], "s1") != numbers[0]
    assert len(read) == 2


def test_only_files_of_whom_is_asked_are_read(pretrained, tmp_path, monkeypatch):
    card, _ = pretrained
    files = [entry(tmp_path / name, name) for name in ("Ada", "Eve")]
    for file in files:
        file.path.write_bytes(b"picture")
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(Path(file.name).name) or digest(file, kind)
    )

    known_patients(card, ["Ada"], files)

    assert read == ["Ada"]


def test_copies_are_looked_for_among_files_of_one_size_and_an_unreadable_one_is_none(tmp_path, monkeypatch):
    for name in ("named", "copy", "size"):
        (tmp_path / name).write_bytes(b"four" if name != "size" else b"another")
    (tmp_path / "other").write_bytes(b"FOUR")
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(Path(file.name).name) or digest(file, kind)
    )
    names = {"named": "Ada", "copy": None, "other": None, "size": None, "gone": "Eve", "absent": None}

    patients = patients_by_copies([entry(tmp_path / name, patient) for name, patient in names.items()])

    assert patients == ["Ada", "Ada", None, None, "Eve", None]
    assert sorted(read) == ["copy", "named", "other"]


def test_another_salt_makes_other_numbers(tmp_path):
    files = [entry(tmp_path, image_id="1.2.3")]

    assert file_numbers(files, "s1") != file_numbers(files, "s2")


@given(st.frozensets(st.integers(0, 2**32 - 1)))
def test_numbers_are_kept_in_six_bytes_of_text_at_most(numbers):
    text = pack_numbers(numbers)

    assert unpack_numbers(text) == numbers
    assert len(text) <= 6 * len(numbers) + 4
