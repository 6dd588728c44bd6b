# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo import``: a public data set becomes a study folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_plugin.progress_bar import progress_bar

if TYPE_CHECKING:
    from echo_plugin.io.datasets.import_report import ImportReport
    from echo_plugin.io.datasets.source_cine import DataSet


REPORT_BEGINS = b'{\n "data_set": '


class DataSetName(StrEnum):
    """The data sets that can be imported."""

    NED = "ned"
    ECHONET_PEDIATRIC = "echonet-pediatric"
    ECHONET_DYNAMIC = "echonet-dynamic"
    CAMUS = "camus"
    CARDIACNET = "cardiacnet"
    TMED2 = "tmed2"
    MIMIC_ECHO = "mimic-echo"
    CLASS_FOLDERS = "class-folders"


def import_data_set(
    name: Annotated[DataSetName, typer.Argument(metavar="NAME", help=", ".join(DataSetName))],
    src: Annotated[Path, typer.Argument(metavar="SRC", help="The unpacked data set.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Study folder to make.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files; without it they are linked.")] = False,
    validation_folds: Annotated[
        str, typer.Option(help="echonet-pediatric: folds for validation, comma-separated.")
    ] = "8",
    test_folds: Annotated[str, typer.Option(help="echonet-pediatric: folds for testing.")] = "9",
    json_target: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write the report there as JSON; - is stdout.")
    ] = None,
) -> None:
    """Make a study folder of a public data set, by reference, with its labels, patients and split.

    Example: monailabel-echo import ned ~/neo-echoset-raw studies/ned
    """
    from echo_plugin.io.atomic_file import write_atomically
    from echo_plugin.io.datasets.study_writer import make_study_folder
    from echo_plugin.io.report_place import begins_with, require_report_place

    if json_target not in (None, "-"):
        require_report_place(Path(json_target), "--json", lambda file: begins_with(file, REPORT_BEGINS), made_later=out)
    data_set = _data_set(name, src, [_folds(text) for text in (validation_folds, test_folds)])
    with progress_bar(f"Importing {name}") as bar:
        report = make_study_folder(name, src, out, data_set, is_copy=copy, progress=bar)
    if json_target is None:
        _show(report)
        return
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
    if json_target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(json_target), text.encode())


def _data_set(name: DataSetName, src: Path, folds: list[tuple[int, ...]]) -> DataSet:
    """Return what is in ``src``; ``folds`` : those for validation and for testing."""
    is_pediatric = name is DataSetName.ECHONET_PEDIATRIC
    if not is_pediatric and folds != [(8,), (9,)]:
        msg = "--validation-folds and --test-folds are those of echonet-pediatric."
        raise typer.BadParameter(msg)
    if is_pediatric:
        from echo_plugin.io.datasets.echonet import read_echonet_pediatric

        return read_echonet_pediatric(src, validation_folds=folds[0], test_folds=folds[1])
    return reader_of(name)(src)


def reader_of(name: DataSetName) -> Callable[[Path], DataSet]:
    """Return the function that reads a data set's layout."""
    from echo_plugin.io.datasets import camus, cardiacnet, class_folders, echonet, mimic_echo, ned, tmed2

    return {
        DataSetName.NED: ned.read_ned,
        DataSetName.ECHONET_PEDIATRIC: echonet.read_echonet_pediatric,
        DataSetName.ECHONET_DYNAMIC: echonet.read_echonet_dynamic,
        DataSetName.CAMUS: camus.read_camus,
        DataSetName.CARDIACNET: cardiacnet.read_cardiacnet,
        DataSetName.TMED2: tmed2.read_tmed2,
        DataSetName.MIMIC_ECHO: mimic_echo.read_mimic_echo,
        DataSetName.CLASS_FOLDERS: class_folders.read_class_folders,
    }[name]


def _folds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as exc:
        msg = f"Folds {text!r} are no list of whole numbers; one such as 8 or 7,8 is accepted."
        raise typer.BadParameter(msg) from exc


def _show(report: ImportReport) -> None:
    """Print the report as tables for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    taken = Table("", "", "cines", "patients", title=f"{report.data_set}: taken")
    for row in report.rows():
        taken.add_row(*row)
    console.print(taken)
    if report.left_out:
        left = Table("left out because", "count")
        for reason, count in report.left_out_by_reason.items():
            left.add_row(reason, str(count))
        console.print(left)
    for note in report.notes:
        console.print(f"Note: {note}")
    if report.without_patient:
        console.print(f"{report.without_patient} cines have no patient: name it in patients.csv before training.")
