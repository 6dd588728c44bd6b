# SPDX-License-Identifier: Apache-2.0
"""What ``monailabel-echo serve`` sets before torch is loaded, for a start by MONAI Label's own command."""

from __future__ import annotations

import os
import sys

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Threads that spin while they wait take 3 to 12 times as long when anything else runs, and 3D Slicer runs beside us.
It is read once, when torch is loaded."""


def restart_with_sleeping_threads() -> None:
    """Begin ``python -m monailabel.main`` again, as the same process, unless its threads were told how to wait.

    MONAI Label loads torch before it loads the app, and has opened no port by then. Elsewhere nothing happens; on
    Windows, where a process cannot become another one, only the trainings are told.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)
    if os.environ.get(WAIT_POLICY) or started is None or started.name != "monailabel.main":
        return
    os.environ[WAIT_POLICY] = "PASSIVE"
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.write(f"Starting again with {WAIT_POLICY}=PASSIVE; set it to save these seconds.\n")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
