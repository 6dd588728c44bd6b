# SPDX-License-Identifier: Apache-2.0
"""The verb ``reproduce`` of the command line: the source papers' tables on phantoms, of views also on NED."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echo_plugin.anatomy import NED_12, View
from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models
from echo_plugin.progress import progress_bar

if TYPE_CHECKING:
    from echo_plugin.papers.defects_table import Row

Markdown = Annotated[Path | None, typer.Option("--markdown", help="Also write the table as a page of results there.")]
reproduce = typer.Typer(help="Make the source papers' tables again.", no_args_is_help=True)

PHANTOM_SEED = 8400
"""Of the cohorts: sets of their own, which no starter model has learned from."""
PAPER_PATIENTS, LARGE_PATIENTS = 120, 600
"""84, 12 and 24 children as in the paper; and enough to tell rows apart."""
SMALL_SIDE_PX, SMALL_FRAMES = 112, 8
SMALL_MINUTES = 0.8
"""Of each training: the table has 33 with 3 seeds, and all else that it needs is to fit what they leave of an hour."""


@reproduce.command("defects")
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
    markdown: Markdown = None,
    device: Device = "auto",
) -> None:
    """Train every network and loss of the defect table on the same patients, and print it beside the paper's.

    Example: monailabel-echo reproduce defects runs/defects --small
    """
    from echo_plugin.papers.defects import reproduce_defects
    from echo_plugin.papers.defects_table import describe, summarise_sweep, summarise_table
    from echo_plugin.training.options import DefectOptions

    options = DefectOptions(
        epochs=epochs,
        max_minutes=max_minutes or (SMALL_MINUTES if small else None),
        cache_dir=out / "cache",
        starter=models,
        device=device,
    )
    rows = _rows(small, sweep)
    counts = patients or ([PAPER_PATIENTS] if small or sweep else [PAPER_PATIENTS, LARGE_PATIENTS])
    cohorts = (
        [studies]
        if studies
        else [
            _phantoms(
                out / f"phantoms-{count}{'-small' if small else ''}",
                count,
                PHANTOM_SEED + count,
                (View.A4C, View.SUBCOSTAL_4C) if small else None,
                SMALL_FRAMES if small else 2 * SMALL_FRAMES,
                jobs,
            )
            for count in counts
        ]
    )
    pages = []
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
        pages.append(describe(title, report))
        sys.stdout.write(pages[-1])
    if markdown is not None:
        from echo_plugin.cli.pages import write_results_page

        write_results_page(
            markdown, "Defects as the ASD/VSD paper tabulates them", "\n".join(f"#{page}" for page in pages)
        )


def _rows(small: bool, sweep: bool) -> list[Row]:
    from echo_plugin.papers.defects_table import more_rows, own_rows, paper_rows, sweep_rows

    if sweep:
        return sweep_rows()
    if small:
        return [*paper_rows("resnet18", SMALL_SIDE_PX), *own_rows()]
    return [*paper_rows(), *own_rows(), *more_rows()]


VIEW_PHANTOM_SEED = 4100
"""Of the phantoms: a set of its own, which no starter model has learned from."""


@reproduce.command("views")
def reproduce_views_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the runs and the table; again: goes on.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="NED as unpacked, or a study folder; without it, phantoms are made."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds; 3 on phantoms, 1 on data.", min=1)] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Of the patients, each tested; 5 on data. Phantoms: one patient in four is tested.", min=2),
    ] = None,
    patients: Annotated[int, typer.Option(help="Phantom children.", min=4)] = 60,
    frames: Annotated[int, typer.Option(help="Frames of a phantom cine.", min=4)] = 24,
    epochs: Annotated[int, typer.Option(help="Of both stages together.", min=2)] = 40,
    max_minutes: Annotated[
        float | None, typer.Option(help="Wall time of each row's stages together.", min=0.01)
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="resnet18 by default, the paper's is resnet50; with --from: its own.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the input, px: 160 by default, the paper's is 224; with --from: its own.", min=32),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.safetensors",
            help="View classifier whose encoder every row begins with; patients that it knows take no part.",
        ),
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Freeze that encoder and learn only what joins frames: minutes a seed.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes that make phantoms.", min=1)] = 1,
    markdown: Markdown = None,
    device: Device = "auto",
) -> None:
    """Train every way to join frames into a view, and print the table beside the paper's.

    Example: monailabel-echo reproduce views runs/views --seeds 3
    """
    from echo_plugin.papers.views import describe, reproduce_views
    from echo_plugin.training.options import ViewOptions

    if frozen and start is None:
        msg = "--frozen freezes an encoder; --from names the classifier that it is of."
        raise typer.BadParameter(msg)
    if data is None:
        folder = out / f"phantoms-{patients}-{frames}"
        studies = _phantoms(folder, patients, VIEW_PHANTOM_SEED, NED_12, frames, jobs)
    else:
        studies = _study_folder(data, out)
    is_phantom = (studies / "phantom.csv").is_file()
    options = ViewOptions(
        epochs=epochs,
        backbone=backbone,
        image_size=image_size,
        max_minutes=max_minutes,
        device=device,
        cache_dir=out / "cache",
    )
    with progress_bar("Reproducing views") as bar:
        report = reproduce_views(
            studies,
            out,
            seeds=seeds or (3 if is_phantom else 1),
            folds=0 if is_phantom and folds is None else folds or 5,
            options=options,
            start=start,
            is_frozen=frozen,
            progress=bar,
        )
    sys.stdout.write(describe(report))
    if markdown is not None:
        from echo_plugin.cli.pages import write_results_page

        write_results_page(markdown, "Views as the neonatal-view paper tabulates them", describe(report))


def _phantoms(folder: Path, patients: int, seed: int, views: Sequence[View] | None, frames: int, jobs: int) -> Path:
    """Return the study folder of phantoms, made or completed."""
    from echo_plugin.phantom.study import write_phantom_study_folder

    with progress_bar("Imaging phantoms") as bar:
        write_phantom_study_folder(
            folder, patients=patients, seed=seed, views=views, frames=frames, jobs=jobs, progress=bar
        )
    return folder


def _study_folder(data: Path, out: Path) -> Path:
    """Return ``data`` if it is a study folder, else one made of it by reference."""
    if (data / "annotations").is_dir():
        return data
    from echo_plugin.io.datasets.ned import read_ned
    from echo_plugin.io.datasets.study_writer import make_study_folder

    with progress_bar("Importing NED") as bar:
        make_study_folder("ned", data, out / "study", read_ned(data), is_replacing=True, progress=bar)
    return out / "study"
