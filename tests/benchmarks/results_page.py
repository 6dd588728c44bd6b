# SPDX-License-Identifier: Apache-2.0
"""What a benchmark prints, kept as a page of results: ``--markdown FILE`` of every benchmark beside this file."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from echo_plugin.cli.pages import write_results_page

OPTION = "--markdown"


class _Tee(io.StringIO):
    def __init__(self, shown: io.TextIOBase) -> None:
        super().__init__()
        self.shown = shown

    def write(self, text: str) -> int:
        self.shown.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.shown.flush()


@contextmanager
def printed_page(title: str) -> Iterator[None]:
    """Write what is printed meanwhile as a page too, if ``--markdown FILE`` was asked for; tables stay tables."""
    if OPTION not in sys.argv:
        yield
        return
    place = sys.argv.index(OPTION)
    page = Path(sys.argv[place + 1])
    asked, sys.argv = sys.argv, sys.argv[:place] + sys.argv[place + 2 :]
    shown, sys.stdout = sys.stdout, _Tee(sys.stdout)
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
    finally:
        printed, sys.stdout, sys.argv = sys.stdout, shown, asked
    write_results_page(page, title, as_markdown(printed.getvalue()))


def as_markdown(printed: str) -> str:
    """Return what was printed with its tables as tables, and all other lines word for word."""
    parts = []
    for is_table, lines in groupby(printed.splitlines(), key=lambda line: line.startswith("|")):
        text = "\n".join(lines).strip("\n")
        if text.strip():
            parts.append(text if is_table else f"```\n{text}\n```")
    return "\n\n".join(parts)
