# SPDX-License-Identifier: Apache-2.0
"""The verbs about the evidence for a defect: ``gallery``, ``verify``, ``patient``, ``explain``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Studies
from echo_plugin.progress import progress_bar


def gallery(
    studies: Studies,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="Folder of published models.", show_default="the studies' own, begun as copies"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Embed the labelled cines of a study folder, for predictions with these models to compare with.

    The gallery is kept beside the models. It is patient data: embeddings can tell patients apart.

    Example: monailabel-echo gallery --studies my_studies
    """
    from echo_plugin.answer.predict import EchoPipeline
    from echo_plugin.evidence.gallery_update import update_gallery
    from echo_plugin.host.folders import served_models
    from echo_plugin.io.study_folder import StudyFolder

    folder = StudyFolder(studies)
    models = served_models(folder.root, models, DEFAULT_MODELS)
    with progress_bar("Embedding") as bar:
        done = update_gallery(folder, EchoPipeline(models, device=device), progress=bar)
    cases = done.gallery.cases
    typer.echo(
        f"{len(cases)} past cases of {len({case.patient_id for case in cases})} patients in {models}"
        f" ({done.embedded} embedded now, {done.passed_over} labelled cines have no septum or no patient id)."
    )
    point = done.gallery.operating_point
    if point is not None:
        typer.echo(
            f"Two cases count as one defect type from similarity {point.threshold:.3f} on: FAR {point.far:.3f}, FRR"
            f" {point.frr:.3f} ({point.pairs} pairs of {point.patients} {point.measured_on})."
        )


def verify(
    first: Annotated[Path, typer.Argument(metavar="A", help="A cine.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another cine.")],
    models: Models = DEFAULT_MODELS,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether two cines show the same defect type, with the error rates of that answer.

    Example: monailabel-echo verify a.dcm b.dcm --models my_studies/.echo_models
    """
    from echo_plugin.answer.predict import EchoPipeline
    from echo_plugin.evidence.comparison import compare_cines
    from echo_plugin.io.study_folder import read_study_cine

    cines = read_study_cine(first), read_study_cine(second)
    answer = compare_cines(EchoPipeline(models, device=device), *cines)
    sys.stdout.write((json.dumps(answer.to_json(), indent=1) if as_json else answer.describe()) + "\n")


def patient(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE_OR_DIR...", help="The cines of one patient, or folders of them.")
    ],
    models: Models = DEFAULT_MODELS,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which defect the cines of one patient show together, and whether they agree.

    Example: monailabel-echo patient study/child_7
    """
    from echo_plugin.answer.batch import find_cine_files
    from echo_plugin.answer.defects import NO_ANSWER
    from echo_plugin.answer.predict import EchoPipeline
    from echo_plugin.io.study_folder import read_study_cine

    files, pipeline = find_cine_files(paths), EchoPipeline(models, device=device)
    cines, patients = [], set()
    with progress_bar("Looking") as bar:
        for number, file in enumerate(files):
            cine = read_study_cine(file)
            patients.add(cine.patient_id)
            cines.append(pipeline.embed(cine))
            bar(number + 1, len(files), file.name)
    if len(patients - {None}) > 1:
        msg = f"The {len(files)} cines are of {len(patients - {None})} patients; those of one are accepted."
        raise ValueError(msg)
    answer = pipeline.combine(cines)
    if answer is None:
        typer.echo(NO_ANSWER.format(asked=len(files)), err=True)
        raise typer.Exit(1)
    sys.stdout.write((json.dumps(answer.to_json(), indent=1) if as_json else answer.describe()) + "\n")


def explain(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A cine.")],
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")],
    frame: Annotated[
        int | None, typer.Option(help="0-based; by default the one that speaks loudest.", min=0, show_default=False)
    ] = None,
    models: Models = DEFAULT_MODELS,
    device: Device = "auto",
) -> None:
    """Draw what of a frame speaks for the predicted defect (Grad-CAM).

    Example: monailabel-echo explain cine.dcm --out why.png
    """
    from echo_plugin.answer.predict import EchoPipeline
    from echo_plugin.evidence.explain import explain_defect
    from echo_plugin.io.study_folder import read_study_cine

    found = explain_defect(EchoPipeline(models, device=device), read_study_cine(file), frame)
    out.write_bytes(found.to_png())
    typer.echo(f"{found.words}: frame {found.frame_index} is drawn in {out}.")
