# SPDX-License-Identifier: Apache-2.0
"""Which files to predict, and what is asked of each: one bad file is reported and the others are done.

Joins ``io`` (which files, reading) to ``predict`` (one cine); the command line and the host call it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from echo_plugin.annotations import view_words
from echo_plugin.errors import EchoError
from echo_plugin.io.cine_file import CINE_SUFFIXES
from echo_plugin.io.study_cine import read_study_cine
from echo_plugin.prediction import TASKS

logger = logging.getLogger(__name__)


def find_cine_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files to read: each named file as it is, and below each folder what can be a cine, sorted.

    Raises
    ------
    FileNotFoundError
        If a path does not exist, or a folder holds nothing that can be a cine.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            msg = f"{path} does not exist; name a cine or a folder of cines."
            raise FileNotFoundError(msg)
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(_cine_files_below(path))
        if not found:
            msg = f"{path} holds no cine; {', '.join(sorted(s for s in CINE_SUFFIXES if s))} are looked at."
            raise FileNotFoundError(msg)
        files.extend(found)
    return files


def _cine_files_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if path.is_file() and not is_hidden and parts[0] != "annotations" and path.suffix.lower() in CINE_SUFFIXES:
            yield path


def parse_tasks(text: str) -> tuple[str, ...]:
    """Return the tasks of a comma-separated list, in the order view, boxes, defect.

    Examples
    --------
    >>> parse_tasks("boxes, view")
    ('view', 'boxes')
    """
    wanted = {part.strip() for part in text.split(",")}
    if not wanted <= set(TASKS):
        msg = f"Tasks {text!r} name {sorted(wanted - set(TASKS))}; {', '.join(TASKS)} are accepted."
        raise ValueError(msg)
    return tuple(task for task in TASKS if task in wanted)


def parse_frames(text: str) -> tuple[int, ...] | None:
    """Return the ascending 0-based frame indices of ``0,5,9``; None for ``all``.

    Examples
    --------
    >>> parse_frames("9,0,5")
    (0, 5, 9)
    >>> parse_frames("all") is None
    True
    """
    if text.strip() == "all":
        return None
    try:
        frame_indices = sorted({int(part) for part in text.split(",")})
    except ValueError as exc:
        msg = f"Frames {text!r} are no list of whole numbers; all, or 0-based indices such as 0,5,9 are accepted."
        raise ValueError(msg) from exc
    if frame_indices[0] < 0:
        msg = f"Frames {text!r} hold {frame_indices[0]}; 0-based indices are accepted."
        raise ValueError(msg)
    return tuple(frame_indices)


class FilePredictor:
    """The published models, asked about one file at a time; whatever a file does, the next one can be asked about.

    Parameters
    ----------
    models
        Folder of published models.
    tasks, frame_indices
        What is asked, see ``EchoPipeline.predict``.
    device
        auto, cpu or cuda.
    """

    def __init__(
        self,
        models: Path,
        *,
        tasks: Sequence[str] = TASKS,
        frame_indices: Sequence[int] | None = None,
        device: str = "auto",
    ) -> None:
        from echo_plugin.predict import EchoPipeline  # torch is loaded only once there is something to predict

        self._pipeline = EchoPipeline(models, device=device)
        self._tasks, self._frame_indices = tuple(tasks), frame_indices

    def predict(self, path: Path) -> dict[str, Any]:
        """Return the JSON-ready entry of a file; of one that fails ``{"path", "error"}``."""
        try:
            cine = read_study_cine(path)
            prediction = self._pipeline.predict(cine, tasks=self._tasks, frame_indices=self._frame_indices)
            return prediction.to_json(cine, path)
        except (EchoError, IndexError, OSError) as exc:
            logger.info("%s was not predicted", path.name)
            return {"path": str(path), "error": str(exc)}
        except Exception as exc:  # whatever it is (no memory, a network's error), the other files are still done
            logger.debug("%s was not predicted", path.name, exc_info=True)
            return {"path": str(path), "error": f"{path.name} could not be predicted: {type(exc).__name__}: {exc}"}


def describe_results(results: Sequence[dict[str, Any]], tasks: Sequence[str] = TASKS) -> str:
    """Return one line of text per predicted file, for a person who asked for ``tasks``."""
    lines = []
    for result in results:
        if "error" in result:
            continue
        parts = [Path(result["path"]).name, f"{result['frames']} frames"]
        if view := result.get("view"):
            is_still, is_standard = bool(view.get("is_still")), view.get("is_standard")
            parts.append(view_words(view["view"], view["probability"], is_still=is_still, is_standard=is_standard))
        if "boxes" in tasks and result.get("boxes") is not None:
            framed = {box["frame_index"] for box in result["boxes"]}
            parts.append(f"{len(result['boxes'])} boxes on {len(framed)} frames")
        if result.get("defect"):
            defect = result["defect"]
            whole = " (no septum found: whole frames were compared)" if defect.get("is_whole_frame") else ""
            parts.append(f"{defect['defect']} {defect['probability']:.2f}{whole}")
        lines.append("  ".join(parts))
    return "\n".join(lines) + "\n" if lines else ""
