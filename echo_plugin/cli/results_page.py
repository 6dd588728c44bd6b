# SPDX-License-Identifier: Apache-2.0
"""A page of measured figures, written by the program that measured them: with its command, the date and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from echo_plugin.durable import write_synced


def write_results_page(page: Path, title: str, text: str) -> None:
    """Write ``text``, Markdown, as one page; its folder is made."""
    head = f"# {title}\n\n| what | value |\n|---|---|\n"
    made = {"command": f"`{_command()}`", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    rows = "".join(f"| {what} | {value} |\n" for what, value in made.items())
    page.parent.mkdir(parents=True, exist_ok=True)
    write_synced(page, f"{head}{rows}\n{text.strip()}\n".encode())


def describe_machine() -> str:
    """Return the processor and how many of its cores this process may use, such as ``Intel Xeon, 2 cores``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # neither Windows nor macOS has it
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"


def _command() -> str:
    program = Path(sys.argv[0])
    is_benchmark = program.parent.name == "benchmarks"
    name = f"python tests/benchmarks/{program.name}" if is_benchmark else "monailabel-echo"
    return f"{name} {shlex.join(sys.argv[1:])}".strip()
