# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo reproduce defects``: the ASD/VSD paper's table on phantoms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_plugin.cli_options import DEFAULT_MODELS, Device, Models
from echo_plugin.progress_bar import progress_bar

if TYPE_CHECKING:
    from echo_plugin.defects.reproduced_rows import Row

PHANTOM_SEED = 8400
"""Of the cohorts: sets of their own, which no starter model has learned from."""
PAPER_PATIENTS, LARGE_PATIENTS = 120, 600
"""84, 12 and 24 children as in the paper; and enough to tell rows apart."""
SMALL_SIDE_PX, SMALL_FRAMES = 112, 8
SMALL_MINUTES = 0.8
"""Of each training: the table has 33 with 3 seeds, and all else that it needs is to fit what they leave of an hour."""


def reproduce_defects_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for phantoms, rows and tables; again: goes on.")],
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="120 children, two views, ResNet-18, a short training of each row: the table in an hour on two cores.",
        ),
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Every s and m of ArcFace instead of the table, ranked by validation patients."),
    ] = False,
    studies: Annotated[
        Path | None, typer.Option("--studies", help="A study folder of your own; without it, phantoms are made.")
    ] = None,
    patients: Annotated[
        list[int] | None,
        typer.Option(
            help="Phantom children; may be repeated.", min=15, show_default=f"{PAPER_PATIENTS}, {LARGE_PATIENTS}"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Each splits the patients anew.", min=1)] = 3,
    models: Models = DEFAULT_MODELS,
    epochs: Annotated[int | None, typer.Option(help="Of every row; the recipes' own by default.", min=1)] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Wall time of each training.", min=0.01)] = None,
    jobs: Annotated[int, typer.Option(help="Processes that make phantoms.", min=1)] = 1,
    device: Device = "auto",
) -> None:
    """Train every network and loss of the defect table on the same patients, and print it beside the paper's.

    Example: monailabel-echo reproduce defects runs/defects --small
    """
    from echo_plugin.defects.reproduce import reproduce_defects
    from echo_plugin.defects.reproduced_summary import summarise_sweep, summarise_table
    from echo_plugin.defects.reproduced_table import describe
    from echo_plugin.training.options import TrainOptions

    options = TrainOptions(
        epochs=epochs,
        max_minutes=max_minutes or (SMALL_MINUTES if small else None),
        cache_dir=out / "cache",
        starter=models,
        device=device,
    )
    rows = _rows(small, sweep)
    counts = patients or ([PAPER_PATIENTS] if small or sweep else [PAPER_PATIENTS, LARGE_PATIENTS])
    cohorts = [studies] if studies else [_phantoms(out, count, small, jobs) for count in counts]
    for cohort in cohorts:
        title = f"{'sweep' if sweep else 'table'}-{cohort.name}"
        with progress_bar(f"Reproducing {title}") as bar:
            report = reproduce_defects(
                cohort,
                out,
                rows,
                seeds=seeds,
                options=options,
                title=title,
                summarise=summarise_sweep if sweep else summarise_table,
                progress=bar,
            )
        sys.stdout.write(describe(title, report))


def _rows(small: bool, sweep: bool) -> list[Row]:
    from echo_plugin.defects.reproduced_rows import more_rows, own_rows, paper_rows, sweep_rows

    if sweep:
        return sweep_rows()
    if small:
        return [*paper_rows("resnet18", SMALL_SIDE_PX), *own_rows()]
    return [*paper_rows(), *own_rows(), *more_rows()]


def _phantoms(out: Path, patients: int, small: bool, jobs: int) -> Path:
    from echo_plugin.anatomy import View
    from echo_plugin.phantom.study import write_phantom_study_folder

    folder = out / f"phantoms-{patients}{'-small' if small else ''}"
    with progress_bar("Imaging phantoms") as bar:
        write_phantom_study_folder(
            folder,
            patients=patients,
            seed=PHANTOM_SEED + patients,
            views=(View.A4C, View.SUBCOSTAL_4C) if small else None,
            frames=SMALL_FRAMES if small else 2 * SMALL_FRAMES,
            jobs=jobs,
            progress=bar,
        )
    return folder
