# SPDX-License-Identifier: Apache-2.0
"""What is installed: versions, devices, published models. Loads no model and no torch, so it answers at once."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

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
            cards.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as exc:
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
        trained_on = card["training_data"]["provenance"]
        lines.append(f"  {card['name']} {card['version']} ({card['architecture']}): trained on {trained_on}")
        for name, metric in card["metrics"].items():
            interval = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if metric.get("low") is not None else ""
            lines.append(
                f"    {name} {metric['value']:.3f}{interval}, {metric['patients']} patients, {metric['split']}"
            )
    return "\n".join(lines) + "\n"
