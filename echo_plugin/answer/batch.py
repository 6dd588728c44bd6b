# SPDX-License-Identifier: Apache-2.0
"""Many cines predicted: which files, what is asked of each, by one process or by Ray's many.

One bad file is reported and the others are done. Each result is written to a journal when it is there, so that a run
that was killed goes on with the rest; one whose file has changed since counts for nothing, and one that failed is tried
again. There is exactly one result per cine, in the order asked: only this process writes, and what a dying worker had
under way is done again by another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from echo_plugin.annotations import view_words
from echo_plugin.answer.prediction import TASKS
from echo_plugin.answer.runtime import TRAIN_COMMANDS
from echo_plugin.durable import file_stamp
from echo_plugin.errors import EchoError
from echo_plugin.io.cine_file import CINE_SUFFIXES
from echo_plugin.io.study_folder import read_study_cine
from echo_plugin.progress import Progress

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
        from echo_plugin.answer.predict import EchoPipeline  # torch is loaded only once there is something to predict

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


ENGINES = ("local", "ray")
TRIES = 3
"""A cine that ends its worker so often is reported and left."""

Result = dict[str, Any]
Stamp = tuple[int, int] | None
Write = Callable[[Path, Stamp, Result], None]


def predict_archive(
    files: Sequence[Path],
    models: Path,
    *,
    engine: str = "local",
    journal: Path | None = None,
    tasks: Sequence[str] = TASKS,
    frame_indices: Sequence[int] | None = None,
    device: str = "auto",
    progress: Progress = lambda done, total, note: None,
    predictor: type[FilePredictor] = FilePredictor,
) -> list[Result]:
    """Return one JSON-ready entry per distinct file, in order; a file that fails gives ``{"path", "error"}``.

    Parameters
    ----------
    engine
        local: this process. ray: one worker for each processor (or GPU) that is free on the Ray cluster that
        ``RAY_ADDRESS`` names, or on this machine; all of them must see the files and models under the same paths.
    journal
        Where results are kept until all are there, readable by its owner only; None: nowhere.

    Raises
    ------
    EchoError
        If the engine is ray, and Ray is not installed or does not start.
    """
    wanted = list(dict.fromkeys(files))
    make = _Make(predictor, models.absolute(), tuple(tasks), frame_indices, device)
    with _journal(journal, make.digest()) as (known, write):
        results = {path: known[key] for path in wanted if (key := str(path.absolute())) in known}
        waiting = [path for path in wanted if path not in results]
        if results:
            logger.warning("%d of %d cines were predicted before; going on with the rest", len(results), len(wanted))
        predict_each = _by_ray if engine == "ray" else _here
        progress(len(results), len(wanted), "")
        stamps: dict[Path, Stamp] = {}
        for path, result in predict_each(_stamped(waiting, stamps), len(waiting), make):
            write(path, stamps[path], result)
            results[path] = result
            progress(len(results), len(wanted), path.name)
    return [results[path] for path in wanted]


class _Make:
    """Makes a predictor, in whatever process asks."""

    def __init__(
        self,
        kind: type[FilePredictor],
        models: Path,
        tasks: tuple[str, ...],
        frame_indices: Sequence[int] | None,
        device: str,
    ) -> None:
        self.kind, self.models, self.tasks, self.frame_indices, self.device = kind, models, tasks, frame_indices, device

    def __call__(self) -> FilePredictor:
        return self.kind(self.models, tasks=self.tasks, frame_indices=self.frame_indices, device=self.device)

    def digest(self) -> str:
        """Return what tells results of other models or questions apart."""
        asked = hashlib.sha256(repr((self.tasks, self.frame_indices)).encode())
        for name in sorted(TRAIN_COMMANDS):
            card = self.models / f"{name}.json"
            asked.update(card.read_bytes() if card.is_file() else b"-")
        return asked.hexdigest()


def _stamped(files: Sequence[Path], stamps: dict[Path, Stamp]) -> Iterator[Path]:
    """Yield the files, noting of each how it is before anybody reads it."""
    for path in files:
        stamps[path] = file_stamp(path)
        yield path


def _here(files: Iterator[Path], _: int, make: _Make) -> Iterator[tuple[Path, Result]]:
    predictor = None
    for path in files:
        predictor = predictor or make()
        yield path, predictor.predict(path)


def _by_ray(files: Iterator[Path], count: int, make: _Make) -> Iterator[tuple[Path, Result]]:
    """Yield results as they come; a worker has one cine at a time, and is replaced when it dies."""
    if not count:
        return
    with _ray() as ray:
        workers = _workers(ray, count, make)
        at_work = {w.predict.remote(path.absolute()): (w, path) for w, path in zip(workers, files, strict=False)}
        while at_work:
            (ready,), _ = ray.wait(list(at_work), num_returns=1)
            worker, path = at_work.pop(ready)
            result = _answer(ray, ready, path)
            if (following := next(files, None)) is not None:
                at_work[worker.predict.remote(following.absolute())] = (worker, following)
            yield path, result


def _workers(ray: Any, most: int, make: _Make) -> list[Any]:
    """Return as many workers as Ray has room for now; the work begins once each of them has its models."""
    on_gpu = make.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    free = int(ray.available_resources().get("GPU" if on_gpu else "CPU", 0))
    needs = {"num_gpus" if on_gpu else "num_cpus": 1, "max_restarts": -1, "max_task_retries": TRIES - 1}
    remote = ray.remote(**needs)(_Worker)
    workers = [remote.remote(make) for _ in range(max(1, min(most, free)))]
    try:
        refusals = ray.get([worker.refusal.remote() for worker in workers])
    except ray.exceptions.RayError as exc:
        msg = f"The workers of engine ray did not start ({type(exc).__name__}); --engine local needs none."
        raise EchoError(msg) from exc
    for refusal in filter(None, refusals):
        raise EchoError(refusal)
    return workers


def _answer(ray: Any, ready: Any, path: Path) -> Result:
    """Return the result of a cine, or what Ray says became of it: the others are still done."""
    try:
        return {**ray.get(ready), "path": str(path)}
    except ray.exceptions.RayActorError:
        error = f"{path.name} ended the worker that predicted it {TRIES} times."
    except ray.exceptions.RayError as exc:  # no memory, a machine that went down
        error = f"{path.name} could not be predicted: Ray reports {type(exc).__name__}."
    return {"path": str(path), "error": error}


class _Worker:
    """A process of Ray with one set of models."""

    def __init__(self, make: _Make) -> None:
        self._refusal = ""
        try:
            self._predictor = make()
        except EchoError as exc:  # said once, not of each cine
            self._refusal = str(exc)
        except Exception as exc:  # no memory, a driver's error: Ray would give a page of it
            said = f"{type(exc).__name__}: {exc}".splitlines()[0]
            self._refusal = f"A worker of engine ray could not load the models ({said})."

    def refusal(self) -> str:
        """Return why this process cannot predict, if it cannot."""
        return self._refusal

    def predict(self, path: Path) -> Result:
        return {"error": self._refusal} if self._refusal else self._predictor.predict(path)


@contextmanager
def _ray() -> Iterator[Any]:
    """Yield Ray, connected; one that was started here listens on loopback, tells nobody, and ends here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as exc:
        msg = "Engine ray is not installed; `pip install 'monailabel-echo[ray]'` does it, --engine local needs nothing."
        raise EchoError(msg) from exc
    is_ours = not ray.is_initialized()
    if is_ours:
        alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(log_to_driver=False, configure_logging=False, **({} if os.environ.get("RAY_ADDRESS") else alone))
        except Exception as exc:  # Ray raises bare ones
            msg = f"Engine ray did not start ({str(exc).splitlines()[0]}); --engine local needs none."
            raise EchoError(msg) from exc
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


@contextmanager
def _journal(path: Path | None, digest: str) -> Iterator[tuple[dict[str, Result], Write]]:
    """Yield the results kept before and a function that keeps one."""
    if path is None:
        yield {}, lambda path, stamp, result: None
        return
    known = _read_journal(path, digest)
    if known is None:
        path.unlink(missing_ok=True)
    with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        if known is None:
            _write_line(file, {"digest": digest})

        def write(source: Path, stamp: Stamp, result: Result) -> None:
            _write_line(file, {"stamp": stamp, "file": str(source.absolute()), "result": result})

        yield known or {}, write


def _write_line(file: TextIO, content: object) -> None:
    file.write(json.dumps(content) + "\n")
    file.flush()


def _read_journal(path: Path, digest: str) -> dict[str, Result] | None:
    """Return the results of files that are as they were; None: no journal of this question.

    The line that a killed writer was in is cut off.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    whole = content[: content.rfind(b"\n") + 1]
    lines = [json.loads(line) for line in whole.splitlines()]
    if not lines or lines[0] != {"digest": digest}:
        return None
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    kept = {line["file"]: line for line in lines[1:] if line["stamp"] and "error" not in line["result"]}
    return {file: line["result"] for file, line in kept.items() if tuple(line["stamp"]) == file_stamp(Path(file))}
