# SPDX-License-Identifier: Apache-2.0
"""The verb ``predict`` of the command line: what the models say of many files, as text, JSON, a table or a tree."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from echo_plugin.cli_options import DEFAULT_MODELS, Device, Models, write_json
from echo_plugin.errors import EchoError
from echo_plugin.progress_bar import progress_bar

Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the views there as a table.")]
Sort = Annotated[
    Path | None, typer.Option("--sort", metavar="DIR", help="Make DIR/<study>/<view> with links to the cines.")
]


def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE_OR_DIR...", help="Cines, or folders of them.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated: view, boxes, defect.")] = "view,boxes,defect",
    frames: Annotated[str, typer.Option(help="all, or 0-based indices such as 0,5,9, for the boxes.")] = "all",
    models: Models = DEFAULT_MODELS,
    device: Device = "auto",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="ray: by many processes (extra ray).")] = "local",
    json_target: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write one JSON list there; - is stdout. Resumed if repeated."),
    ] = None,
    table: Csv = None,
    sort: Sort = None,
    copy: Annotated[bool, typer.Option("--copy", help="With --sort: copies instead of links.")] = False,
    raw_boxes: Annotated[
        bool, typer.Option("--raw-boxes", help="Every box of the detector, weak ones too, not linked over time.")
    ] = False,
) -> None:
    """Predict view, septal boxes and defect of cines.

    Example: monailabel-echo predict sample_studies --tasks view --csv views.csv --sort sorted
    """
    from echo_plugin.archive import predict_archive
    from echo_plugin.batch import describe_results, find_cine_files, parse_frames, parse_tasks
    from echo_plugin.prediction import RAW_BOXES

    try:
        chosen, frame_indices = parse_tasks(tasks), parse_frames(frames)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    if raw_boxes and "boxes" not in chosen:
        msg = "--raw-boxes are boxes; --tasks boxes asks for them."
        raise typer.BadParameter(msg)
    _require_views(chosen, table, sort, is_copy=copy)
    json_file = None if json_target in (None, "-") else Path(str(json_target))
    _require_places(paths, json_file, table, sort)
    files = find_cine_files(paths)
    journal = json_file and Path(f"{json_target}.part")
    found = tuple(RAW_BOXES if raw_boxes and task == "boxes" else task for task in chosen)
    asked: dict[str, Any] = {"tasks": found, "frame_indices": frame_indices, "device": device}
    with progress_bar("Predicting") as bar:
        results = predict_archive(files, models, engine=engine, journal=journal, progress=bar, **asked)
    if json_target is not None:
        write_json(results, json_target)
        if journal is not None:
            journal.unlink(missing_ok=True)
    else:
        sys.stdout.write(describe_results(results, chosen))
    _keep_views(results, table, sort, is_copy=copy)
    failed = [result for result in results if "error" in result]
    for result in failed:
        typer.echo(f"{result['path']}: {result['error']}", err=True)
    if failed:
        raise typer.Exit(1)


def _require_views(tasks: Sequence[str], table: Path | None, sort: Path | None, *, is_copy: bool) -> None:
    """Refuse to keep views that nobody asks for."""
    if (table or sort) and "view" not in tasks:
        msg = "--csv and --sort are of the views; --tasks view asks for them."
        raise typer.BadParameter(msg)
    if is_copy and sort is None:
        msg = "--copy copies what --sort sorts; name a folder with --sort."
        raise typer.BadParameter(msg)


def _require_places(paths: Sequence[Path], json_file: Path | None, table: Path | None, sort: Path | None) -> None:
    """Refuse, before anything is predicted, a place that could not be written to afterwards, or holds another's file.

    Raises
    ------
    EchoError
        If a file cannot be written there, or is there and is none of ours.
    """
    from echo_plugin.io.report_place import require_report_place
    from echo_plugin.views.sorted_files import require_sortable

    if sort is not None:
        require_sortable(sort, paths)
    if json_file and table and json_file.resolve() == table.resolve():
        msg = f"--json and --csv both name {table}; a file for each is accepted."
        raise EchoError(msg)
    for option, file, is_ours in (("--json", json_file, _is_list_of_answers), ("--csv", table, _is_view_table)):
        if file is None:
            continue
        require_report_place(file, option, is_ours)
        if sort is not None and file.resolve().is_relative_to(sort.resolve()):
            msg = f"{option} {file} lies in the folder of --sort, which is made anew; another place is accepted."
            raise EchoError(msg)


def _is_list_of_answers(file: Path) -> bool:
    """Whether a file is a list as ``--json`` writes it; another program's list is not."""
    from echo_plugin.prediction import TASKS

    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and all(
        isinstance(entry, dict) and "path" in entry and not entry.keys().isdisjoint(("error", *TASKS))
        for entry in found
    )


def _is_view_table(file: Path) -> bool:
    from echo_plugin.io.report_place import begins_with
    from echo_plugin.views.table import COLUMNS

    return begins_with(file, ",".join(COLUMNS).encode())


def _keep_views(results: Sequence[dict[str, Any]], table: Path | None, sort: Path | None, *, is_copy: bool) -> None:
    if table is not None:
        from echo_plugin.views.table import write_view_table

        write_view_table(results, table)
    if sort is not None:
        from echo_plugin.views.sorted_files import sort_by_view

        counts = sort_by_view(results, sort, is_copy=is_copy)
        words = ", ".join(f"{view} {count}" for view, count in sorted(counts.items())) or "none"
        typer.echo(f"Sorted into {sort}: {words}.", err=True)
