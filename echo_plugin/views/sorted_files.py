# SPDX-License-Identifier: Apache-2.0
"""Files sorted by study and view: a new tree of links or copies. What is sorted stays where it is, as it is.

    OUT/<Study Instance UID>/<view>/<image id>.dcm
    OUT/folder-1/<view>/<image id>                    files without a study, by the folder that they lie in

A cine that shows no standard view is under ``NO-STANDARD-VIEW``, whatever it was called. No name of a folder of the
source is repeated, for folders are named after patients; the tree is there whole or not at all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from echo_plugin.anatomy import View
from echo_plugin.errors import EchoError
from echo_plugin.io.atomic_file import fsync_directory, make_directory, require_writable
from echo_plugin.io.cine_file import escape_path, read_cine
from echo_plugin.io.image_id import is_uid

NO_STANDARD_VIEW = "NO-STANDARD-VIEW"


def require_sortable(out: Path, sources: Sequence[Path]) -> None:
    """Raise EchoError unless ``out`` is new or empty, can be replaced, and neither lies in a source nor holds one."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        msg = f"Folder {out} to sort into is not empty; a new or empty one is accepted."
        raise EchoError(msg)
    target = out.resolve()
    if target == Path.cwd() or os.path.ismount(target):
        msg = f"Folder {out} to sort into cannot be replaced by the sorted one; a new folder is accepted."
        raise EchoError(msg)
    for source in sources:
        folder = (source if source.is_dir() else source.parent).resolve()
        if target.is_relative_to(folder) and source.is_dir():
            msg = f"Folder {out} to sort into lies in {source}, which is sorted; one outside of it is accepted."
            raise EchoError(msg)
        if folder.is_relative_to(target):
            msg = f"Folder {out} to sort into holds {source}, which is sorted; another one is accepted."
            raise EchoError(msg)
    nearest = next((directory for directory in target.parents if directory.is_dir()), None)
    if nearest is None:  # Windows: each drive has a root of its own
        msg = f"Folder {out} to sort into lies on no drive that is there; one on another drive is accepted."
        raise EchoError(msg)
    require_writable(nearest)


def sort_by_view(results: Sequence[Mapping[str, Any]], out: Path, *, is_copy: bool) -> Counter[str]:
    """Make the tree ``out`` of the entries of ``predict --json``, and return the number of files of each view.

    ``is_copy`` : copy the files; else they are linked, and must stay where they are. Entries with an error are left.

    Raises
    ------
    EchoError
        If a link, a copy or the tree cannot be made; nothing is left of it then.
    """
    out = out.resolve()
    make_directory(out.parent)
    partial = out.with_name(f".{out.name}-{secrets.token_hex(4)}")
    try:
        partial.mkdir()
        counts = _fill(partial, results, is_copy=is_copy)
        if out.is_dir():
            out.rmdir()  # empty, or this fails
        partial.rename(out)
        fsync_directory(out.parent)
    except OSError as exc:
        msg = f"Folder {out} cannot be sorted into ({exc.strerror or exc}); where links are not allowed, --copy copies."
        raise EchoError(msg) from exc
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _fill(tree: Path, results: Sequence[Mapping[str, Any]], *, is_copy: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    folders: dict[Path, str] = {}
    for result in results:
        if result.get("view") is None:
            continue
        source, view = Path(result["path"]), _view_folder(result["view"])
        cine = read_cine(source)  # its header alone: no frame is decoded
        study = cine.study_instance_uid or ""
        if not is_uid(study):
            study = folders.setdefault(source.parent.absolute(), f"folder-{len(folders) + 1}")
        directory = tree / study / view
        directory.mkdir(parents=True, exist_ok=True)
        place = _free_name(directory, f"{cine.image_id}.dcm" if is_uid(cine.image_id) else _escaped(source))
        if is_copy:
            shutil.copyfile(source, place)
        else:
            place.symlink_to(source.absolute())
        counts[view] += 1
    return counts


def _view_folder(view: Mapping[str, Any]) -> str:
    is_strange = view.get("is_standard") is False or view["view"] == View.OTHER.value
    return NO_STANDARD_VIEW if is_strange else str(view["view"])


def _escaped(source: Path) -> str:
    return escape_path(PurePosixPath(source.name))


def _free_name(directory: Path, name: str) -> Path:
    """Return a path of that name, or numbered: the same cine may have been named twice, in two files."""
    path, number = directory / name, 2
    while os.path.lexists(path):
        path, number = directory / f"{PurePosixPath(name).stem}_{number}{PurePosixPath(name).suffix}", number + 1
    return path
