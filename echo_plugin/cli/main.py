# SPDX-License-Identifier: Apache-2.0
"""The command ``monailabel-echo``: each verb hands over to one function of the floors below.

Imports stand inside the verbs, so that ``--help`` and ``info``, which load no torch, answer at once. Results go to
stdout, progress and errors to stderr; exit code 0 done, 1 failed, 2 bad usage.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from echo_plugin.cli.evaluate import evaluate, review
from echo_plugin.cli.evidence import explain, gallery, patient, verify
from echo_plugin.cli.options import DEFAULT_MODELS, Device, Models, Seed, write_json
from echo_plugin.cli.predict import predict
from echo_plugin.cli.reproduce import reproduce
from echo_plugin.cli.studies import export, import_data_set, labels
from echo_plugin.cli.train import train
from echo_plugin.errors import EchoError
from echo_plugin.model_card import TrainingCohort
from echo_plugin.progress import progress_bar

VERBS = ("serve", "predict", "train", "evaluate", "phantom", "import", "info")
"""Those of the contract, which ``--help`` names first."""


class Verbs(TyperGroup):
    """The verbs in the order in which ``--help`` names them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        others = [name for name in super().list_commands(ctx) if name not in VERBS]
        return [*VERBS, *others]


app = typer.Typer(
    name="monailabel-echo",
    cls=Verbs,
    help="Septal boxes, defects and views of paediatric echocardiograms. Research only: not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Add --debug to any command for tracebacks and the log.",
)
MORE = "More"


@app.command()
def serve(
    studies: Annotated[
        Path | None,
        typer.Option("--studies", help="Study folder; with --pacs for annotations.", show_default="sample_studies"),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option("--models", help="Folder of published models.", show_default="the studies' own, begun as copies"),
    ] = None,
    pacs: Annotated[str | None, typer.Option(help="Base address of a DICOMweb archive with the cines.")] = None,
    sr: Annotated[Literal["off", "auto"], typer.Option(help="auto: store all that is said as DICOM SR too.")] = "off",
    auto_finetune: Annotated[
        int, typer.Option(help="Train the detector after so many submissions; 0: only on request.", min=0, max=999_999)
    ] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 serves this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 8000,
    device: Device = "auto",
) -> None:
    """Serve a study folder, or a hospital's archive, to 3D Slicer and OHIF.

    Example: monailabel-echo serve --studies sample_studies --port 8000
    """
    from echo_plugin.host.launcher import serve as serve_app

    raise typer.Exit(
        serve_app(studies, models, pacs=pacs, sr=sr, auto_finetune=auto_finetune, host=host, port=port, device=device)
    )


app.command()(predict)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
app.command("import")(import_data_set)
for verb in (labels, export, review, gallery, verify, patient, explain):
    app.command(rich_help_panel=MORE)(verb)
app.add_typer(reproduce, name="reproduce", rich_help_panel=MORE)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Study folder to write.")],
    patients: Annotated[int, typer.Option("--patients", help="Number of synthetic children.", min=1)],
    seed: Seed = 0,
    views: Annotated[str | None, typer.Option(help="Comma-separated views; all by default, drawn per patient.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of each cine; with --fetal: stills of each view.", min=1)] = 32,
    fetal: Annotated[bool, typer.Option("--fetal", help="First-trimester stills of the views fetal-5.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes side by side.", min=1)] = 1,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a contact sheet (PNG) there.")] = None,
) -> None:
    """Write a labelled study folder of synthetic cines.

    Example: monailabel-echo phantom phantoms --patients 10 --seed 1 --sheet phantoms.png
    """
    from echo_plugin.anatomy import parse_views
    from echo_plugin.phantom.contact_sheet import write_contact_sheet
    from echo_plugin.phantom.study import write_phantom_study_folder

    if fetal:
        if views is not None or jobs != 1:
            msg = "--views and --jobs are of the children's phantom; with --fetal every patient has all fetal views."
            raise typer.BadParameter(msg)
        from echo_plugin.papers.fetal_study import write_fetal_sheet, write_fetal_study_folder

        with progress_bar("Drawing fetal phantoms") as bar:
            write_fetal_study_folder(out, patients=patients, seed=seed, stills=frames, progress=bar)
        if sheet is not None:
            write_fetal_sheet(out, sheet)
        return
    try:
        chosen = parse_views(views) if views else None
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    with progress_bar("Imaging phantoms") as bar:
        write_phantom_study_folder(
            out, patients=patients, seed=seed, views=chosen, frames=frames, jobs=jobs, progress=bar
        )
    if sheet is not None:
        write_contact_sheet(out, sheet)


@app.command()
def info(
    models: Models = DEFAULT_MODELS,
    json_target: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON there.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write a page beside each card, for people.")] = False,
) -> None:
    """Show versions, device and the published models with their cards, without loading any model.

    Example: monailabel-echo info --json -
    """
    if markdown:
        from echo_plugin.cli.pages import write_model_cards

        for page in write_model_cards(models):
            typer.echo(f"Wrote {page}.", err=True)
        return
    facts = describe_installation(models)
    if json_target is not None:
        write_json(facts, json_target)
    else:
        sys.stdout.write(format_installation(facts))


BAD_USAGE: Any = typer.BadParameter.__base__
"""What typer raises of an unknown word or a refused value; its name is private, and another in older releases."""


def main() -> None:
    """Run the command line: errors become one sentence on stderr and exit code 1, bad usage exit code 2."""
    # Before torch is loaded: its threads must sleep while they wait. Spinning, they take 3 to 12 times as long when
    # anything else runs, and 3D Slicer runs beside us.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    is_debug = "--debug" in sys.argv
    logging.basicConfig(level="DEBUG" if is_debug else "WARNING", format="%(levelname)s %(name)s: %(message)s")
    try:
        code = app([argument for argument in sys.argv[1:] if argument != "--debug"], standalone_mode=False)
    except BAD_USAGE as exc:
        typer.echo(exc.format_message(), err=True)
        sys.exit(2)
    except (EchoError, OSError, ValueError) as exc:
        if is_debug:
            raise
        typer.echo(str(exc), err=True)
        sys.exit(1)
    sys.exit(code or 0)


LIBRARIES = ("monailabel-echo", "monailabel", "monai", "torch", "torchvision", "pydicom", "itk", "numpy")


def count_cuda_devices() -> int:
    """Return how many CUDA devices the driver sees; 0 without a driver (asked of it directly, no torch needed)."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def describe_installation(models: Path) -> dict[str, Any]:
    """Return versions, devices and the card of every published model, JSON-ready.

    A card that cannot be read becomes ``{"name", "error"}``.
    """
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    cards = []
    for path in sorted(models.glob("*.json")):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            cards.append({**card, "trained_on": TrainingCohort(**card["cohort"]).words})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            cards.append({"name": path.stem, "error": f"Card {path.name} cannot be read: {exc}."})
    return {
        "versions": {"python": sys.version.split()[0], **versions},
        "device": {"platform": platform.platform(), "cpus": os.cpu_count(), "cuda_devices": count_cuda_devices()},
        "models_folder": str(models),
        "models": cards,
    }


def format_installation(facts: dict[str, Any]) -> str:
    """Return the installation's facts as lines for a person."""
    lines = [f"{name:16} {version}" for name, version in facts["versions"].items()]
    device = facts["device"]
    gpu = f"{device['cuda_devices']} CUDA device(s)" if device["cuda_devices"] else "no CUDA device: runs on the CPU"
    lines += [f"{'device':16} {device['cpus']} CPU cores, {gpu}", f"{'models':16} {facts['models_folder']}"]
    if not facts["models"]:
        lines.append("  none published; train one with `monailabel-echo train detector --studies DIR --models DIR`")
    for card in facts["models"]:
        if "error" in card:
            lines.append(f"  {card['name']}: {card['error']}")
            continue
        lines.append(f"  {card['name']} {card['version']} ({card['architecture']}): trained on {card['trained_on']}")
        for name, metric in card["metrics"].items():
            interval = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if metric.get("low") is not None else ""
            lines.append(
                f"    {name} {metric['value']:.3f}{interval}, {metric['patients']} patients, {metric['split']}"
            )
    return "\n".join(lines) + "\n"
