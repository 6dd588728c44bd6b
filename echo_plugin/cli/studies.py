# SPDX-License-Identifier: Apache-2.0
"""The commands of study folders: ``import`` (of a public data set), ``export`` and ``labels`` (from a table)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_plugin.cli.options import Studies, require_report_place, write_json
from echo_plugin.host.folders import served_folder
from echo_plugin.progress import progress_bar

if TYPE_CHECKING:
    from echo_plugin.io.datasets.source_cine import DataSet, ImportReport


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
    replace: Annotated[
        bool, typer.Option("--replace", help="Make an earlier import in OUT anew; labels that people gave stay.")
    ] = False,
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
    from echo_plugin.io.datasets.study_writer import make_study_folder

    if json_target not in (None, "-"):
        require_report_place(Path(json_target), "--json", made_later=out)
    data_set = _data_set(name, src, [_folds(text) for text in (validation_folds, test_folds)])
    with progress_bar(f"Importing {name}") as bar:
        report = make_study_folder(name, src, out, data_set, is_copy=copy, is_replacing=replace, progress=bar)
    if json_target is None:
        _show(report)
    else:
        write_json(report.to_json(), json_target)


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


def export(
    studies: Annotated[
        Path, typer.Argument(metavar="STUDIES", help="Study folder: images and annotations/.", callback=served_folder)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.")],
    formats: Annotated[str, typer.Option("--format", help="Comma-separated: coco, csv, sr, png, mp4.")] = "coco,csv",
) -> None:
    """Write annotated cines without names, dates, authors or text outside the tissue.

    Example: monailabel-echo export sample_studies exported --format coco,csv,sr,png,mp4
    """
    from echo_plugin.export.study_folder import export_study_folder, parse_formats

    try:
        chosen = parse_formats(formats)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    with progress_bar("Exporting") as bar:
        exported = export_study_folder(studies, out, chosen, progress=lambda done, total: bar(done, total, ""))
    typer.echo(f"Exported {exported.cines} cines to {out}.", err=True)
    for problem in exported.problems:
        typer.echo(problem, err=True)
    if exported.problems:
        raise typer.Exit(1)


def labels(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="CSV",
            help="Columns: image_id, file or patient_id; defect, defect_size_mm, defect_visible, view.",
            exists=True,
            dir_okay=False,
        ),
    ],
    studies: Studies,
    author: Annotated[str, typer.Option(help="Who says so; kept with every label.")] = "table",
) -> None:
    """Label the cines of a study folder from a table; boxes stay as they are, each change is a new revision.

    defect_visible (yes or no) says whether the cine shows the defect that the child has. Empty cells say nothing.

    Example: monailabel-echo labels diagnoses.csv --studies my_studies
    """
    from echo_plugin.io.study_labels import set_labels

    with progress_bar("Labelling") as bar:
        summary = set_labels(studies, table, author=author, progress=bar)
    typer.echo(f"{summary.changed} cines labelled anew, {summary.unchanged} said the same before.", err=True)
