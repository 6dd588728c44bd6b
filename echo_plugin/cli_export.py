# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo export``: annotated cines for other programs, without anybody's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_plugin.progress_bar import progress_bar


def export(
    studies: Annotated[Path, typer.Argument(metavar="STUDIES", help="Study folder: images and annotations/.")],
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
