# SPDX-License-Identifier: Apache-2.0
"""The parts of a multipart/related body, each in a temporary file, while the body is still arriving."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterable
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser


class PartsToFiles:
    """Write each part to a file of its own in ``folder``; ``paths`` are those that are complete.

    Raises
    ------
    ValueError
        If ``content_type`` is no multipart type with a boundary.
    """

    def __init__(self, content_type: str, folder: Path) -> None:
        message = Message()
        message["content-type"] = content_type
        boundary = message.get_boundary()
        if message.get_content_maintype() != "multipart" or not boundary:
            msg = f"The body has the type {content_type[:80]!r}; multipart/related with a boundary is accepted."
            raise ValueError(msg)
        self.paths: list[Path] = []
        self.is_complete = False
        self._folder = folder
        self._file: BinaryIO | None = None
        self._path = folder
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Take in the next bytes of the body.

        Raises
        ------
        ValueError
            If they cannot be part of a multipart body.
        """
        try:
            self._parser.write(chunk)
        except MultipartParseError as exc:
            msg = f"The multipart body is malformed ({exc})."
            raise ValueError(msg) from exc

    def close(self) -> None:
        """End the body.

        Raises
        ------
        ValueError
            If it was cut off.
        """
        if self._file is not None:
            self._file.close()
        if not self.is_complete:
            msg = "The multipart body is cut off: its closing boundary is missing."
            raise ValueError(msg)

    def _begin(self) -> None:
        descriptor, name = tempfile.mkstemp(".dcm", dir=self._folder)
        self._file, self._path = os.fdopen(descriptor, "wb"), Path(name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._file.write(data[start:end])

    def _end(self) -> None:
        assert self._file is not None
        self._file.close()
        self.paths.append(self._path)
        self._file = None

    def _finish(self) -> None:
        self.is_complete = True


async def parts_to_files(chunks: AsyncIterable[bytes], content_type: str, folder: Path) -> list[Path]:
    """Write the parts of a multipart body to files in ``folder`` and return them in order.

    Raises
    ------
    ValueError
        If the body is no complete multipart body.
    """
    parts = PartsToFiles(content_type, folder)
    async for chunk in chunks:
        parts.write(chunk)
    parts.close()
    return parts.paths
