# SPDX-License-Identifier: Apache-2.0
"""A page of measured figures, written by the program that measured them: with its command, the date and the machine."""

from __future__ import annotations

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from echo_plugin.durable import write_atomically


def write_results_page(page: Path, title: str, text: str) -> None:
    """Write ``text``, Markdown, as one page; its folder is made."""
    from echo_plugin.evaluate.report import describe_machine

    head = f"# {title}\n\n| what | value |\n|---|---|\n"
    made = {"command": f"`{_command()}`", "date": datetime.now(UTC).date().isoformat(), "machine": describe_machine()}
    rows = "".join(f"| {what} | {value} |\n" for what, value in made.items())
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, f"{head}{rows}\n{text.strip()}\n".encode())


def _command() -> str:
    program = Path(sys.argv[0])
    is_benchmark = program.parent.name == "benchmarks"
    name = f"python tests/benchmarks/{program.name}" if is_benchmark else "monailabel-echo"
    return f"{name} {shlex.join(sys.argv[1:])}".strip()
