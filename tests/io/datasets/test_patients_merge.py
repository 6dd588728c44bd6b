# SPDX-License-Identifier: Apache-2.0
"""``patients.csv`` of an import: whatever a person changed is there afterwards, and every patient has one part."""

import csv
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echo_plugin.io.datasets.patients_merge import Said, merge_patients
from echo_plugin.io.patients_file import read_parts, read_patients

parts = st.sampled_from(["", "train", "validation", "test"])
by_set = st.builds(Said, st.none() | st.sampled_from("123"), parts)
by_header = st.builds(Said, st.sampled_from("123"), parts, st.just(True))
said = st.dictionaries(st.sampled_from("abcdef"), by_set | by_header)
by_person = st.dictionaries(st.sampled_from("abcdefg"), st.none() | st.sampled_from("1239"))
parts_by_person = st.dictionaries(st.sampled_from("1239"), parts)


def edit(table: Path, changes: dict[str, str | None], parts_now: dict[str, str] | None = None) -> None:
    """Give cines another patient, add those that are not there, take out the lines of those with None.

    Every line of a patient in ``parts_now`` then has that part.
    """
    with table.open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    for image_id, patient in changes.items():
        rows[image_id] = {**rows.get(image_id, {"image_id": image_id, "split": ""}), "patient_id": patient or ""}
    for row in rows.values():
        row["split"] = (parts_now or {}).get(row["patient_id"], row["split"])
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image_id", "patient_id", "split"])
        writer.writeheader()
        writer.writerows(row for row in rows.values() if row["patient_id"])


@settings(max_examples=15, deadline=None)
@given(said, by_person, said)
def test_what_a_person_wrote_outlives_every_import(first: dict, changes: dict, later: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        merge_patients(out, first)
        before = read_patients(out / "patients.csv")
        edit(out / "patients.csv", changes)

        for _ in range(2):
            merge_patients(out, later)

        after = read_patients(out / "patients.csv")
        for image_id, patient in changes.items():
            if patient != before.get(image_id):
                assert after.get(image_id) == patient


@settings(max_examples=15, deadline=None)
@example({"a": Said("2", "train"), "b": Said("1", "validation")}, {"a": "1"}, {}, {})
@example(
    {"a": Said("3", "", True), "b": Said("2", "", True)},
    {},
    {"2": "train", "3": "validation"},
    {"a": Said("2", "", True)},
)
@given(said, by_person, parts_by_person, said)
def test_the_same_import_again_changes_nothing_and_no_patient_has_two_parts(
    first: dict, changes: dict, chosen: dict, later: dict
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        merge_patients(out, first)
        edit(out / "patients.csv", changes, chosen)
        once = merge_patients(out, later)
        written = [(out / name).read_bytes() for name in ("patients.csv", ".import_patients.csv")]

        again = merge_patients(out, later)

        assert [(out / name).read_bytes() for name in ("patients.csv", ".import_patients.csv")] == written
        assert (again.patients, again.parts) == (once.patients, once.parts)
        assert read_parts(out / "patients.csv") == again.parts


@settings(max_examples=15, deadline=None)
@given(said, parts_by_person)
def test_a_part_that_a_person_chose_outlives_every_import(words: dict, chosen: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        patients = set(merge_patients(out, words).patients.values())
        edit(out / "patients.csv", {}, chosen)
        wanted = read_parts(out / "patients.csv")

        for _ in range(2):
            merge_patients(out, words)

        after = read_parts(out / "patients.csv")
        for patient in patients & chosen.keys():
            assert after.get(patient) == wanted.get(patient)


@settings(max_examples=15, deadline=None)
@given(said, said)
def test_a_header_is_followed_and_every_change_of_a_patient_is_counted(first: dict, later: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        before = merge_patients(out, first).patients

        merged = merge_patients(out, later)

        assert {i: merged.patients[i] for i, word in later.items() if word.is_by_header} == {
            i: word.patient for i, word in later.items() if word.is_by_header
        }
        changed = sum(merged.patients.get(image_id) != patient for image_id, patient in before.items())
        told = [int(note.split()[0]) for note in merged.notes if "had another patient in the last import" in note]
        assert told == ([changed] if changed else [])


@settings(max_examples=15, deadline=None)
@given(said)
def test_a_first_import_writes_what_the_data_set_says(words: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_patients(Path(folder), words)

        assert read_patients(Path(folder) / "patients.csv") == {i: w.patient for i, w in words.items() if w.patient}
        for patient, part in merged.parts.items():
            assert {word.part for word in words.values() if word.patient == patient} - {""} == {part}
