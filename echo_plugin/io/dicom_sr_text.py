# SPDX-License-Identifier: Apache-2.0
"""Structured reports of view and defect, which viewers without our panel show as text.

References
----------
PS3.16 TID 2000, 2001; PS3.3 A.35.2
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

from pydicom import uid
from pydicom.dataset import Dataset

from echo_plugin.anatomy import Defect, View
from echo_plugin.annotations import DefectPrediction, ViewPrediction
from echo_plugin.errors import AnnotationError
from echo_plugin.io import sr_content as sr
from echo_plugin.io.dicom_sr import Observer, context, document, procedure

NOT_CLINICAL = "Research only: not for clinical use."
Named = TypeVar("Named", View, Defect)


def text_report(
    source: Dataset,
    view: ViewPrediction | None,
    defect: DefectPrediction | None,
    observer: Observer,
    *,
    now: datetime,
) -> Dataset:
    """Return an Enhanced SR that says view and defect with their probabilities, in codes and in words.

    Raises
    ------
    AnnotationError
        If there is neither.
    """
    codes = sr.dictionary()
    findings: list[Dataset] = []
    if view is not None:
        if view.view.code is not None:
            findings.append(sr.code(codes.DCM.ImageView, view.view.code))
        findings += _words(source, "View", view.view, view.probabilities)
    if defect is not None:
        if defect.defect.code is not None:
            findings.append(sr.code(codes.DCM.Finding, defect.defect.code))
        findings += _words(source, "Septal defect", defect.defect, defect.probabilities)
    if not findings:
        msg = f"Image {source.SOPInstanceUID} has neither view nor defect to report."
        raise AnnotationError(msg)
    findings += [sr.text(codes.DCM.Comment, comment) for comment in (_which_cine(source), NOT_CLINICAL) if comment]
    root = sr.container(
        codes.LN.DiagnosticImagingReport,
        [*context(observer), procedure(), sr.container(codes.DCM.Findings, findings)],
        relationship=None,
    )
    series = ("text", repr(observer))
    return document(source, root, uid.EnhancedSRStorage, series, description="AI view and defect", now=now)


def _words(source: Dataset, what: str, said: Named, probabilities: Mapping[Named, float]) -> list[Dataset]:
    """Return what is said, in words, inferred from the cine: an image of its own without a name stops OHIF."""
    codes = sr.dictionary()
    likely = sorted(probabilities.items(), key=lambda pair: -pair[1])[:5]
    shown = ", ".join(f"{name.value} {probability:.2f}" for name, probability in likely)
    cine = sr.image(source.SOPClassUID, source.SOPInstanceUID, "INFERRED FROM")
    return [
        sr.text(codes.DCM.Finding, f"{what}: {said.value} (probabilities: {shown})", children=[cine]),
        sr.number(codes.DCM.Probability, round(100 * probabilities[said], 1), codes.UCUM.Percent),
    ]


def _which_cine(source: Dataset) -> str | None:
    """Return by which numbers a viewer lists the cine; None: it has none."""
    series, instance = source.get("SeriesNumber"), source.get("InstanceNumber")
    return None if series is None or instance is None else f"About series {series}, instance {instance}."
