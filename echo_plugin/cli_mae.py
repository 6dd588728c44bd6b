# SPDX-License-Identifier: Apache-2.0
"""The masked autoencoder's part of the verb ``train``, and the fetal part of the verb ``phantom``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from echo_plugin.progress_bar import progress_bar

MAE_ONLY = "Of mae"
Images = Annotated[
    list[Path] | None,
    typer.Option(help=f"{MAE_ONLY}: folders of ultrasound without labels (DICOM, video, PNG, ...); repeat for more."),
]
MaskRatio = Annotated[
    float | None, typer.Option(help=f"{MAE_ONLY}: part of the patches that is hidden; 0.75 by default.", min=0, max=1)
]
PatchNorm = Annotated[
    bool, typer.Option("--patch-norm", help=f"{MAE_ONLY}: bring every patch to be drawn to the same contrast.")
]


def mae_trainer(mask_ratio: float | None, patch_norm: bool) -> Callable[..., Any]:
    """Return what trains the masked autoencoder on folders of pictures.

    Raises
    ------
    ValueError
        If so large a part of the patches cannot be hidden.
    """
    from echo_plugin.training.mae import train_mae
    from echo_plugin.training.mae_options import MaeOptions

    task = MaeOptions(is_patch_normalised=patch_norm)
    if mask_ratio is not None:
        task = MaeOptions(mask_ratio=mask_ratio, is_patch_normalised=patch_norm)
    return partial(train_mae, task=task)


def fetal_phantom(out: Path, patients: int, seed: int, stills: int, *, sheet: Path | None, is_plain: bool) -> None:
    """Write a folder of first-trimester stills; ``is_plain``: nothing was asked for that only children have."""
    from echo_plugin.phantom.fetal_study import write_fetal_sheet, write_fetal_study_folder

    if not is_plain:
        msg = "--views and --jobs are of the children's phantom; with --fetal every patient has all five fetal views."
        raise typer.BadParameter(msg)
    with progress_bar("Drawing fetal phantoms") as bar:
        write_fetal_study_folder(out, patients=patients, seed=seed, stills=stills, progress=bar)
    if sheet is not None:
        write_fetal_sheet(out, sheet)
