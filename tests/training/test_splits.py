# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_plugin.anatomy import Defect
from echo_plugin.errors import TrainingDataError
from echo_plugin.training.splits import (
    Split,
    patient_defects,
    patient_fingerprints,
    patients_of_several_defects,
    recognised_patients,
    require_patient,
    split_by_patient,
)

DEFECTS = {f"child-{i:03d}": (Defect.NORMAL, Defect.ASD, Defect.VSD)[i % 3] for i in range(60)}


def test_split_that_shares_a_patient_is_refused_with_the_count_and_no_identity():
    with pytest.raises(TrainingDataError, match="shares 2 patients between train and test") as refusal:
        Split(train=("Ada", "Ben", "Cy"), validation=("Dan",), test=("Ben", "Cy"), seed=0)

    assert "Ben" not in str(refusal.value)


def test_every_patient_is_in_exactly_one_part():
    split = split_by_patient(DEFECTS, seed=3)

    assert sorted(split.train + split.validation + split.test) == sorted(DEFECTS)
    assert split.sizes == {"train": 42, "validation": 9, "test": 9}


def test_each_defect_is_in_each_part_in_proportion():
    split = split_by_patient(DEFECTS, seed=3)

    for defect in set(DEFECTS.values()):
        assert 13 <= sum(DEFECTS[p] is defect for p in split.train) <= 15
        assert 2 <= sum(DEFECTS[p] is defect for p in split.test) <= 4


def test_same_seed_gives_same_split_whatever_the_order_of_patients():
    backwards = dict(reversed(list(DEFECTS.items())))

    assert split_by_patient(DEFECTS, seed=5) == split_by_patient(backwards, seed=5)
    assert split_by_patient(DEFECTS, seed=5).digest != split_by_patient(DEFECTS, seed=6).digest


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 40), st.integers(0, 5))
def test_no_part_is_empty(patients, seed):
    split = split_by_patient({str(i): None for i in range(patients)}, seed=seed)

    assert min(split.sizes.values()) >= 1
    assert sum(split.sizes.values()) == patients


def test_two_patients_cannot_be_split():
    with pytest.raises(TrainingDataError, match=r"at least 3 patients .* 2 are annotated"):
        split_by_patient({"a": None, "b": None}, seed=0)


@pytest.mark.parametrize("patients", [["a"], ["a", "b"]])
def test_where_nobody_must_be_measured_all_of_too_few_patients_are_learned_from(patients):
    split = split_by_patient(dict.fromkeys(patients), seed=0, may_be_unmeasured=True)

    assert (split.train, split.validation, split.test) == (tuple(patients), (), ())


def test_from_three_patients_on_somebody_is_measured_even_if_nobody_must_be():
    split = split_by_patient(dict.fromkeys("abc"), seed=0, may_be_unmeasured=True)

    assert split.sizes == {"train": 1, "validation": 1, "test": 1}


def test_those_who_were_learned_from_are_never_measured_for_lack_of_others():
    split = split_by_patient(DEFECTS, seed=0, known=dict.fromkeys(DEFECTS, "train"), may_be_unmeasured=True)

    assert split.sizes == {"train": len(DEFECTS), "validation": 0, "test": 0}


def test_those_who_were_measured_are_never_learned_from_for_lack_of_others():
    with pytest.raises(TrainingDataError, match="keeps all 2 patients for measuring"):
        split_by_patient(dict.fromkeys("ab"), seed=0, known=dict.fromkeys("ab", "test"), may_be_unmeasured=True)


def test_cine_without_patient_is_refused_by_its_image_id():
    with pytest.raises(TrainingDataError, match="Cine a4c_007 has no patient id"):
        require_patient(" ", "a4c_007")


def test_defect_of_one_cine_is_the_defect_of_the_patient():
    pairs = [("p", None), ("p", Defect.NORMAL), ("p", Defect.VSD), ("q", None), ("r", Defect.NORMAL), ("r", None)]

    assert patient_defects(pairs) == {"p": Defect.VSD, "q": None, "r": Defect.NORMAL}


def test_a_patient_with_two_defects_is_told_apart_and_has_the_first_of_them_whatever_the_order_of_cines():
    pairs = [("p", Defect.VSD), ("p", Defect.NORMAL), ("p", Defect.ASD), ("q", Defect.TOF), ("q", Defect.NORMAL)]

    assert patient_defects(pairs) == patient_defects(reversed(pairs)) == {"p": Defect.ASD, "q": Defect.TOF}
    assert patients_of_several_defects(pairs) == {"p"}


def test_fingerprints_recognise_the_patients_of_a_card_and_no_others():
    seen = patient_fingerprints(["a", "b"], salt="s1")

    assert recognised_patients(["a", "b", "c", "d"], {"train": seen}, salt="s1") == {"a": "train", "b": "train"}
    assert patient_fingerprints(["a", "b"], salt="s2") != seen


def test_known_patients_keep_their_part_and_new_ones_are_dealt():
    first = split_by_patient(DEFECTS, seed=1)
    known = {patient: part for part in ("train", "validation", "test") for patient in getattr(first, part)}
    more = DEFECTS | {f"new-{i}": Defect.ASD for i in range(20)}

    second = split_by_patient(more, seed=9, known=known)

    assert set(first.train) <= set(second.train)
    assert set(first.test) <= set(second.test)
    assert second.sizes == {"train": 56, "validation": 12, "test": 12}


def test_no_one_left_to_measure_is_refused():
    with pytest.raises(TrainingDataError, match="leave no one to measure"):
        split_by_patient(DEFECTS, seed=0, known=dict.fromkeys(DEFECTS, "train"))


def test_validation_is_drawn_from_the_training_patients_of_a_split_that_has_none():
    fixed = {patient: "test" if i % 5 == 0 else "train" for i, patient in enumerate(DEFECTS)}

    split = split_by_patient(DEFECTS, seed=2, fixed=fixed)

    assert set(split.test) == {patient for patient, part in fixed.items() if part == "test"}
    assert 5 <= len(split.validation) <= 10
    assert {DEFECTS[patient] for patient in split.validation} == set(DEFECTS.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 20), st.integers(1, 19), st.sampled_from(["validation", "test"]), st.integers(0, 3))
def test_any_split_with_two_training_patients_can_be_learned_from(patients, measured, part, seed):
    fixed = {str(i): part if i < min(measured, patients - 2) else "train" for i in range(patients)}

    split = split_by_patient(dict.fromkeys(fixed), seed=seed, fixed=fixed)

    assert min(split.sizes.values()) >= 1
    assert set(getattr(split, part)) == {patient for patient, given in fixed.items() if given == part}


def test_nobody_whom_a_model_has_learned_from_is_drawn_for_validation():
    fixed = {patient: "test" if i % 5 == 0 else "train" for i, patient in enumerate(DEFECTS)}
    known = {patient: "train" for patient, part in list(fixed.items())[:40] if part == "train"}

    split = split_by_patient(DEFECTS, seed=2, fixed=fixed, known=known)

    assert split.validation
    assert set(known) <= set(split.train)


def test_a_complete_split_of_a_data_set_is_kept_and_patients_without_a_part_are_dealt():
    fixed = {patient: ("train", "validation", "test")[i % 4] for i, patient in enumerate(DEFECTS) if i % 4 < 3}

    split = split_by_patient(DEFECTS, seed=2, fixed=fixed)

    assert {patient: split.part_of(patient) for patient in fixed} == fixed


@pytest.mark.parametrize("parts", [("test", "test", "test"), ("train", "test", "test")])
def test_a_split_that_leaves_nobody_for_a_part_is_refused_by_its_name(parts):
    fixed = dict(zip("abc", parts, strict=True))

    with pytest.raises(TrainingDataError, match=r"split in patients\.csv leaves nobody for .*validation among the 3"):
        split_by_patient(dict.fromkeys(fixed), seed=0, fixed=fixed)


def test_equal_fingerprints_count_as_learned_from():
    seen = patient_fingerprints(["a"], salt="s")

    assert recognised_patients(["a"], {"train": seen, "test": seen}, salt="s") == {"a": "train"}
