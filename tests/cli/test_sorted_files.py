# SPDX-License-Identifier: Apache-2.0
"""Files sorted by study and view: nothing is moved, nothing in the tree is changed, no folder's name is repeated."""

import csv
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from echo_plugin.answer import batch
from echo_plugin.cli.main import app
from echo_plugin.cli.predict import NO_STANDARD_VIEW, sort_by_view, write_view_table
from echo_plugin.errors import EchoError
from echo_plugin.io.cine_file import read_cine

SAMPLES = Path(__file__).resolve().parents[2] / "sample_studies"
DICOM = SAMPLES / "PHANTOM-69-0001" / "IM_0001.dcm"


def answered(path: Path, view: str, *, is_standard: bool | None = True) -> dict[str, Any]:
    probabilities = {view: 0.75, "PLAX-LV" if view == "A4C" else "A4C": 0.25}
    answer = {"view": view, "probability": 0.75, "probabilities": probabilities, "frame_indices": [0]}
    return {
        "path": str(path), "image_id": path.name, "frames": 3,
        "view": answer | {"is_still": False, "is_standard": is_standard},
    }  # fmt: skip


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Two studies in DICOM, one of them with a changed copy of its cine, and stills in folders named after people."""
    root = tmp_path / "src"
    for name in ("a/one.dcm", "b/changed.dcm"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DICOM, root / name)
    changed = pydicom.dcmread(root / "b/changed.dcm")
    changed.PatientComments = "exported once more"
    changed.save_as(root / "b/changed.dcm")
    shutil.copy(SAMPLES / "PHANTOM-69-0002" / "IM_0001.dcm", root / "a" / "two.dcm")
    for name in ("Doe^Jane/x.png", "Doe^John/x.png", "Doe^John/y.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 80).save(root / name)
    return root


def results_of(src: Path) -> list[dict[str, Any]]:
    return [
        answered(src / "Doe^Jane/x.png", "A4C"),
        answered(src / "Doe^John/x.png", "A4C", is_standard=None),
        answered(src / "Doe^John/y.png", "PLAX-LV", is_standard=False),
        answered(src / "a/one.dcm", "A4C"),
        answered(src / "a/two.dcm", "OTHER", is_standard=None),
        answered(src / "b/changed.dcm", "A4C"),
        {"path": str(src / "a/broken.dcm"), "error": "broken"},
    ]


def tree_of(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


@pytest.mark.parametrize("is_copy", [False, True])
def test_a_study_is_sorted_by_view_and_the_originals_stay(src: Path, tmp_path: Path, is_copy: bool) -> None:
    before = {path: (src / path).read_bytes() for path in tree_of(src)}
    one, two = read_cine(DICOM), read_cine(src / "a/two.dcm")

    counts = sort_by_view(results_of(src), tmp_path / "deep" / "out", is_copy=is_copy)

    out = tmp_path / "deep" / "out"
    assert counts == {"A4C": 4, NO_STANDARD_VIEW: 2}
    assert tree_of(out) == sorted(
        [
            "folder-1/A4C/x.png",
            "folder-2/A4C/x.png",
            f"folder-2/{NO_STANDARD_VIEW}/y.png",
            f"{one.study_instance_uid}/A4C/{one.image_id}.dcm",
            f"{one.study_instance_uid}/A4C/{one.image_id}_2.dcm",
            f"{two.study_instance_uid}/{NO_STANDARD_VIEW}/{two.image_id}.dcm",
        ]
    )
    assert {path: (src / path).read_bytes() for path in tree_of(src)} == before
    assert all(path.is_symlink() is not is_copy for path in out.rglob("*") if path.is_file())
    first = out / str(one.study_instance_uid) / "A4C" / f"{one.image_id}.dcm"
    assert first.read_bytes() == DICOM.read_bytes()
    assert list((tmp_path / "deep").iterdir()) == [out]


def test_no_name_of_a_source_folder_is_repeated(src: Path, tmp_path: Path) -> None:
    sort_by_view(results_of(src), tmp_path / "out", is_copy=True)

    assert "Doe" not in " ".join(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("is_copy", [False, True])
def test_what_is_in_the_tree_stays_and_the_same_cine_is_there_once(src: Path, tmp_path: Path, is_copy: bool) -> None:
    dicom = [result for result in results_of(src) if result["path"].endswith("dcm")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    sort_by_view(dicom, tmp_path / "out", is_copy=is_copy)
    before = {path: (tmp_path / "out" / path).read_bytes() for path in tree_of(tmp_path / "out")}

    sort_by_view(dicom, tmp_path / "out", is_copy=is_copy)

    assert {path: (tmp_path / "out" / path).read_bytes() for path in tree_of(tmp_path / "out")} == before
    assert len(before) == 4


def test_stills_of_another_source_never_come_into_the_folders_of_the_first(src: Path, tmp_path: Path) -> None:
    first, second, *_ = results_of(src)
    sort_by_view([first], tmp_path / "out", is_copy=True)

    sort_by_view([second], tmp_path / "out", is_copy=True)

    assert tree_of(tmp_path / "out") == ["folder-1/A4C/x.png", "folder-2/A4C/x.png"]


def test_a_copy_that_cannot_be_made_is_said_in_one_sentence(src: Path, tmp_path: Path, monkeypatch) -> None:
    def full_disk(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_disk)

    with pytest.raises(EchoError, match=r"out cannot be sorted into \(No space left on device\)"):
        sort_by_view(results_of(src), tmp_path / "out", is_copy=True)


def test_the_table_has_a_row_for_every_file(src: Path, tmp_path: Path) -> None:
    write_view_table([*results_of(src), {"path": "z", "image_id": "z", "frames": 1, "view": None}], tmp_path / "v.csv")

    with (tmp_path / "v.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows][-3:] == ["changed.dcm", "broken.dcm", "z"]
    assert rows[0] == {
        "path": str(src / "Doe^Jane/x.png"), "image_id": "x.png", "frames": "3", "view": "A4C", "probability": "0.7500",
        "is_standard": "True", "is_still": "False", "error": "", "p(A4C)": "0.7500", "p(PLAX-LV)": "0.2500",
        "p(OTHER)": "",
    }  # fmt: skip
    assert (rows[-2]["error"], rows[-2]["view"], rows[-1]["view"]) == ("broken", "", "")


class FakePredictor:
    """Stands for the networks: calls every file an A4C, and fails at one."""

    def __init__(self, models: Path, **asked: object) -> None:
        pass

    def predict(self, path: Path) -> dict[str, Any]:
        return answered(path, "A4C") if path.name != "y.png" else {"path": str(path), "error": "broken"}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    import functools

    from echo_plugin.answer import batch

    fake = functools.partial(batch.predict_archive, predictor=FakePredictor)
    monkeypatch.setattr(batch, "predict_archive", fake)
    return lambda *arguments: CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_predict_writes_the_table_and_the_tree_though_a_file_failed(call: Any, src: Path, tmp_path: Path) -> None:
    answer = call(src, "--tasks", "view", "--csv", tmp_path / "v.csv", "--sort", tmp_path / "out")

    assert answer.exit_code == 1
    assert "broken" in answer.stderr
    assert f"Sorted into {tmp_path / 'out'}: A4C 5." in answer.stderr
    assert (tmp_path / "v.csv").read_text().count("\n") == 7
    assert len(tree_of(tmp_path / "out")) == 5
    assert os.path.lexists(src / "Doe^John/y.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tasks", "boxes", "--csv", "v.csv"), "--tasks view asks for them"),
        (("--tasks", "defect", "--sort", "out"), "--tasks view asks for them"),
        (("--copy",), "name a folder with --sort"),
    ],
)
def test_what_could_not_be_sorted_is_bad_usage(call: Any, src: Path, arguments: tuple[str, ...], words: str) -> None:
    answer = call(src, *arguments)

    assert answer.exit_code == 2
    assert words in " ".join(answer.stderr.replace("│", " ").split())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was predicted, or looked for to be."""
    asked: list[Path] = []
    monkeypatch.setattr(FakePredictor, "predict", lambda self, path: asked.append(path))
    monkeypatch.setattr(batch, "find_cine_files", asked.extend)
    return asked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--csv", "a"), r"--csv a is no file that can be written to"),
        (("--json", "a"), r"--json a is no file that can be written to"),
        (("--csv", "nowhere/v.csv"), r"Folder nowhere of --csv does not exist; one that does is accepted"),
        (("--json", "nowhere/v.json"), r"Folder nowhere of --json does not exist; one that does is accepted"),
        (("--csv", "same", "--json", "./same"), r"--json and --csv both name same; a file for each"),
        (("--sort", "a/one.dcm"), r"one.dcm cannot be written to \(Not a directory\)"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_predicted(
    call: Any, src: Path, asked: list[Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(src)

    answer = call(src, "--tasks", "view", *arguments)

    assert isinstance(answer.exception, EchoError)
    assert re.search(words, str(answer.exception))
    assert asked == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only Linux has a folder that nobody can write to")
@pytest.mark.parametrize("arguments", [("--csv", "/proc/v.csv"), ("--json", "/proc/v.json"), ("--sort", "/proc/out")])
def test_a_folder_that_nobody_can_write_to_is_refused_before_anything_is_predicted(
    call: Any, src: Path, asked: list[Path], arguments: tuple[str, ...]
) -> None:
    answer = call(src, "--tasks", "view", *arguments)

    assert isinstance(answer.exception, EchoError)
    assert "Folder /proc cannot be written to" in str(answer.exception)
    assert asked == []


def test_the_files_of_json_and_csv_are_written_anew(call: Any, src: Path, tmp_path: Path) -> None:
    arguments = ("--tasks", "view", "--csv", tmp_path / "v.csv", "--json", tmp_path / "v.json")
    call(src / "Doe^Jane", *arguments)

    answer = call(src / "a", *arguments)

    assert answer.exit_code == 0
    assert "two.dcm" in (tmp_path / "v.csv").read_text()
    assert "x.png" not in (tmp_path / "v.csv").read_text() + (tmp_path / "v.json").read_text()
