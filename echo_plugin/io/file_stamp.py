# SPDX-License-Identifier: Apache-2.0
"""What tells one writing of a file from another: phantoms made anew keep their names.

Take the stamp before the file is read: one that is replaced meanwhile is then looked at again, not taken for the old.
"""

from __future__ import annotations

from pathlib import Path


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return when a file was written, in ns, and its size in bytes; None: the system does not tell, it is gone say."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
