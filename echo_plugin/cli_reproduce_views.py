# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo reproduce views``: the neonatal-view paper's table on phantoms, or on NED itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from echo_plugin.cli_options import Device
from echo_plugin.progress_bar import progress_bar

PHANTOM_SEED = 4100
"""Of the phantoms: a set of its own, which no starter model has learned from."""


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
    still: Annotated[
        bool, typer.Option("--still", help="Hold that encoder still and learn only what joins frames: minutes a seed.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes that make phantoms.", min=1)] = 1,
    device: Device = "auto",
) -> None:
    """Train every way to join frames into a view, and print the table beside the paper's.

    Example: monailabel-echo reproduce views runs/views --seeds 3
    """
    from echo_plugin.training.options import TrainOptions
    from echo_plugin.views.reproduce import reproduce_views
    from echo_plugin.views.reproduced_table import describe

    if still and start is None:
        msg = "--still holds an encoder still; --from names the classifier that it is of."
        raise typer.BadParameter(msg)
    studies = _phantoms(out, patients, frames, jobs) if data is None else _study_folder(data, out)
    is_phantom = (studies / "phantom.csv").is_file()
    options = TrainOptions(
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
            is_still=still,
            progress=bar,
        )
    sys.stdout.write(describe(report))


def _phantoms(out: Path, patients: int, frames: int, jobs: int) -> Path:
    """Return the study folder of phantoms of the twelve views, made or completed."""
    from echo_plugin.anatomy import NED_12
    from echo_plugin.phantom.study import write_phantom_study_folder

    studies = out / f"phantoms-{patients}-{frames}"
    with progress_bar("Imaging phantoms") as bar:
        write_phantom_study_folder(
            studies, patients=patients, seed=PHANTOM_SEED, views=NED_12, frames=frames, jobs=jobs, progress=bar
        )
    return studies


def _study_folder(data: Path, out: Path) -> Path:
    """Return ``data`` if it is a study folder, else one made of it by reference."""
    if (data / "annotations").is_dir():
        return data
    from echo_plugin.io.datasets.ned import read_ned
    from echo_plugin.io.datasets.study_writer import make_study_folder

    with progress_bar("Importing NED") as bar:
        make_study_folder("ned", data, out / "study", read_ned(data), progress=bar)
    return out / "study"
