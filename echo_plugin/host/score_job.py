# SPDX-License-Identifier: Apache-2.0
"""Scoring in a process of its own, of low priority, so that no request waits for it; `score_keeper` starts it.

python -m echo_plugin.host.score_job STUDIES SCORES.sqlite MODELS DEVICE
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from echo_plugin.host.training_job import end_with_server

NICENESS = 10


def main(studies: Path, scores: Path, models: Path, device: str) -> int:
    """Score the study folder; return 0, or 1 after one sentence on stderr: it is to be started again."""
    end_with_server()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    from echo_plugin.acquisition.score_folder import score_folder
    from echo_plugin.acquisition.score_store import ScoreStore
    from echo_plugin.errors import EchoError
    from echo_plugin.io.study_folder import StudyFolder

    try:
        scored = score_folder(StudyFolder(studies), models, ScoreStore(scores), device=device)
    except EchoError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    if scored.put_off:
        sys.stderr.write(
            f"{scored.put_off} of {scored.cines} cines could not be looked at and are tried again later.\n"
        )
        return 1
    words = f"{scored.cines} cines scored, {scored.unreadable} unreadable"
    if scored.labels is not None:
        words += f", {scored.labels.judged} labels judged, {scored.labels.left_out} left out"
    sys.stderr.write(f"{words}\n")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
