# SPDX-License-Identifier: Apache-2.0
"""The place of a report is refused before the work, if the report could not be put there or something else is there."""

from pathlib import Path

import pytest

from echo_plugin.cli.options import require_report_place
from echo_plugin.errors import EchoError


def is_ours(file: Path) -> bool:
    return file.read_bytes() == b"ours"


def require(file: Path, **later: Path) -> None:
    require_report_place(file, "--json", is_ours, **later)


@pytest.mark.parametrize("content", [None, b"", b"ours"])
def test_a_new_an_empty_and_an_earlier_report_are_accepted_and_stay_as_they_are(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)

    require(file)

    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if content is None else [content])


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[1]")

    with pytest.raises(EchoError, match="was not written by an earlier run"):
        require(tmp_path / "notes.json")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EchoError, match="is no file"):
        require(tmp_path)


@pytest.mark.parametrize(
    "name", ["patients.csv", "Patients.CSV", "import.json", "annotations", ".echo_index.sqlite", "annotations/x.json"]
)
def test_names_that_a_study_folder_keeps_are_refused_before_it_is_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(EchoError, match="keeps that name for itself"):
        require(tmp_path / "out" / name, made_later=tmp_path / "out")


def test_a_link_to_a_kept_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").symlink_to(tmp_path / "patients.csv")

    with pytest.raises(EchoError, match="keeps that name for itself"):
        require(tmp_path / "report.json")


def test_a_folder_that_is_not_there_is_refused_unless_the_work_makes_it(tmp_path: Path) -> None:
    require(tmp_path / "out" / "report.json", made_later=tmp_path / "x" / ".." / "out")

    with pytest.raises(EchoError, match="of --json does not exist"):
        require(tmp_path / "other" / "report.json", made_later=tmp_path / "out")


def test_a_folder_that_nothing_can_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("echo_plugin.durable.tempfile.TemporaryFile", refuse)

    with pytest.raises(EchoError, match=r"cannot be written to \(Permission denied\)"):
        require(tmp_path / "report.json")
