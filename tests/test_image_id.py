# SPDX-License-Identifier: Apache-2.0
"""Paths become image ids and come back."""

from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo_plugin.annotations import require_image_id
from echo_plugin.cine import escape_path, is_uid

PIECES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda s: s not in {".", ".."}
)
PATHS = st.lists(PIECES, min_size=1, max_size=3).map(lambda pieces: PurePosixPath(*pieces))
ANY_LENGTH = st.text(st.characters(exclude_characters="\0"), max_size=400).map(PurePosixPath)


@given(PATHS)
@example(PurePosixPath("_leading/underscore"))
@example(PurePosixPath("%41.dcm"))
@example(PurePosixPath("...hidden..."))
@example(PurePosixPath("-dash-"))
@example(PurePosixPath("Herz Müller/Kammerblick ♥.mp4"))
@example(PurePosixPath("not-utf8-\udcff"))
def test_escaped_path_comes_back(path: PurePosixPath) -> None:
    image_id = escape_path(path)

    if "%-" not in image_id:
        assert unquote_to_bytes(image_id.removeprefix("_")).decode("utf-8", "surrogatepass") == str(path)


@pytest.mark.heavy
@given(ANY_LENGTH)
@example(PurePosixPath("a" * 500))
@example(PurePosixPath("1.2.840.10008"))
@example(PurePosixPath("CON"))
def test_every_path_becomes_a_valid_id(path: PurePosixPath) -> None:
    assert require_image_id(escape_path(path)) == escape_path(path)


@given(ANY_LENGTH, ANY_LENGTH)
def test_different_paths_have_different_ids(one: PurePosixPath, other: PurePosixPath) -> None:
    assert (escape_path(one) == escape_path(other)) == (one == other)


def test_long_names_that_differ_at_their_end_keep_apart() -> None:
    one, other = PurePosixPath("ü" * 300 + "1.mp4"), PurePosixPath("ü" * 300 + "2.mp4")

    assert escape_path(one) != escape_path(other)
    assert len(escape_path(one)) == 200


def test_shortened_id_tells_that_its_path_is_lost() -> None:
    assert "%-" in escape_path(PurePosixPath("x" * 300))


def test_file_named_like_a_uid_does_not_pass_for_one() -> None:
    assert not is_uid(escape_path(PurePosixPath("1.2.840.10008.1")))


@pytest.mark.parametrize("text", ["", "1", "1..2", "1.02", ".1", "1.", "1.2a", "1." * 40 + "1", "../1.2"])
def test_what_is_no_uid_is_told(text: str) -> None:
    assert not is_uid(text)
