# SPDX-License-Identifier: Apache-2.0
"""The verb ``predict`` of the command line: what the models say of many files, as text, JSON, a table or a tree.

``--json`` and ``--csv`` overwrite their file. ``--sort`` adds links or copies to a tree and changes nothing that is
there; what is sorted stays where it is, as it is:

    DIR/<Study Instance UID>/<view>/<image id>.dcm
    DIR/folder-1/<view>/<image id>                    files without a study, by the folder that they lie in

A cine that shows no standard view is under ``NO-STANDARD-VIEW``, whatever it was called. No name of a folder of the
source is repeated, for folders are named after patients; sorted again, files without a study come into new folders.
"""

from __future__ import annotations

import csv
import filecmp
import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import typer

from echo_plugin.anatomy import View
from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, require_report_place, write_json
from echo_plugin.durable import require_writable, write_atomically
from echo_plugin.errors import EchoError
from echo_plugin.progress import progress_bar

Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the views there as a table.")]
Sort = Annotated[
    Path | None, typer.Option("--sort", metavar="DIR", help="Put links to the cines into DIR/<study>/<view>.")
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
    from echo_plugin.answer.batch import describe_results, find_cine_files, parse_frames, parse_tasks, predict_archive
    from echo_plugin.answer.prediction import RAW_BOXES

    try:
        chosen, frame_indices = parse_tasks(tasks), parse_frames(frames)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    if raw_boxes and "boxes" not in chosen:
        msg = "--raw-boxes are boxes; --tasks boxes asks for them."
        raise typer.BadParameter(msg)
    _require_views(chosen, table, sort, is_copy=copy)
    json_file = None if json_target in (None, "-") else Path(str(json_target))
    _require_places(json_file, table, sort)
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


def _require_places(json_file: Path | None, table: Path | None, sort: Path | None) -> None:
    """Refuse, before anything is predicted, a place that could not be written to afterwards.

    Raises
    ------
    EchoError
        If it could not, or two answers were to go into one file.
    """
    if json_file and table and json_file.resolve() == table.resolve():
        msg = f"--json and --csv both name {table}; a file for each is accepted."
        raise EchoError(msg)
    for option, file in (("--json", json_file), ("--csv", table)):
        if file is not None:
            require_report_place(file, option)
    if sort is not None:
        target = sort.absolute()
        there = (folder for folder in (target, *target.parents) if folder.exists())
        require_writable(next(there, Path(target.anchor)))


def _keep_views(results: Sequence[dict[str, Any]], table: Path | None, sort: Path | None, *, is_copy: bool) -> None:
    if table is not None:
        write_view_table(results, table)
    if sort is not None:
        counts = sort_by_view(results, sort, is_copy=is_copy)
        words = ", ".join(f"{view} {number}" for view, number in sorted(counts.items())) or "none"
        typer.echo(f"Sorted into {sort}: {words}.", err=True)


NO_STANDARD_VIEW = "NO-STANDARD-VIEW"


def sort_by_view(results: Sequence[Mapping[str, Any]], out: Path, *, is_copy: bool) -> Counter[str]:
    """Add the entries of ``predict --json`` to the tree ``out``, and return the number of files of each view.

    ``is_copy`` : copy the files; else they are linked, and must stay where they are. Entries with an error are left.

    Raises
    ------
    EchoError
        If a link or a copy cannot be made; those before it are.
    """
    from echo_plugin.cine import escape_path, is_uid
    from echo_plugin.io.cine_file import read_cine

    counts: Counter[str] = Counter()
    folders: dict[Path, str] = {}
    unused = (name for n in count(1) if not os.path.lexists(out / (name := f"folder-{n}")))
    for result in results:
        if result.get("view") is None:
            continue
        source, view = Path(result["path"]), _view_folder(result["view"])
        cine = read_cine(source)  # its header alone: no frame is decoded
        study, parent = cine.study_instance_uid or "", source.parent.absolute()
        if not is_uid(study):
            if parent not in folders:
                folders[parent] = next(unused)
            study = folders[parent]
        name = f"{cine.image_id}.dcm" if is_uid(cine.image_id) else escape_path(PurePosixPath(source.name))
        try:
            _add(source.absolute(), out / study / view / name, is_copy=is_copy)
        except OSError as exc:
            reason = exc.strerror or exc
            msg = f"Folder {out} cannot be sorted into ({reason}); where links are not allowed, --copy copies."
            raise EchoError(msg) from exc
        counts[view] += 1
    return counts


def _view_folder(view: Mapping[str, Any]) -> str:
    is_strange = view.get("is_standard") is False or view["view"] == View.OTHER.value
    return NO_STANDARD_VIEW if is_strange else str(view["view"])


def _add(source: Path, path: Path, *, is_copy: bool) -> None:
    """Link or copy ``source`` to ``path``, numbered if another file has that name; the same file is there once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = PurePosixPath(path.name).stem, PurePosixPath(path.name).suffix
    number = 1
    while os.path.lexists(path):
        if path.is_file() and filecmp.cmp(source, path, shallow=False):
            return
        number += 1
        path = path.with_name(f"{stem}_{number}{suffix}")
    if is_copy:
        shutil.copyfile(source, path)
    else:
        path.symlink_to(source)


COLUMNS = ("path", "image_id", "frames", "view", "probability", "is_standard", "is_still", "error")
"""The first columns; the probability of each view follows as ``p(A4C)``. Empty: not known."""


def write_view_table(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the entries of ``predict --json`` as comma-separated text, whole or not at all; failed files have a row."""
    answered = [result["view"] for result in results if result.get("view") is not None]
    views = dict.fromkeys(name for view in answered for name in view["probabilities"])
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, [*COLUMNS, *(f"p({name})" for name in views)], restval="", lineterminator="\n")
    rows.writeheader()
    rows.writerows(_row(result) for result in results)
    write_atomically(path, text.getvalue().encode())


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: result[name] for name in ("path", "image_id", "frames", "error") if name in result}
    view = result.get("view")
    if view is None:
        return row
    row |= {name: view[name] for name in ("view", "is_standard", "is_still") if view[name] is not None}
    row["probability"] = f"{view['probability']:.4f}"
    return row | {f"p({name})": f"{p:.4f}" for name, p in view["probabilities"].items()}
