# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo labels``: defects and views of many cines from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_plugin.cli_options import Studies
from echo_plugin.progress_bar import progress_bar


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
    from echo_plugin.study_labels import set_labels

    with progress_bar("Labelling") as bar:
        summary = set_labels(studies, table, author=author, progress=bar)
    typer.echo(f"{summary.changed} cines labelled anew, {summary.unchanged} said the same before.", err=True)
