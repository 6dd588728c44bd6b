# SPDX-License-Identifier: Apache-2.0
import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from echo_plugin.durable import SqliteFile, locked, remove_abandoned, replace_atomically, write_atomically

SCHEMA = ("CREATE TABLE kept (number INTEGER PRIMARY KEY, text)",)
HOLD = """
import sys, pathlib
from echo_plugin.durable import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError("disk full")))

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")

    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_private_file_is_private_from_its_beginning(tmp_path):
    modes = []

    def make(partial):
        modes.append(partial.stat().st_mode & 0o777)
        partial.write_bytes(b"x")

    replace_atomically(tmp_path / "file", make, mode=0o600)

    assert [*modes, (tmp_path / "file").stat().st_mode & 0o777] == [0o600, 0o600]


def test_what_a_maker_leaves_half_made_replaces_nothing(tmp_path):
    path = tmp_path / "cine.nrrd"
    path.write_bytes(b"before")

    def fail(partial):
        assert partial.suffix == ".nrrd"
        partial.write_bytes(b"half")
        raise OSError

    with pytest.raises(OSError):
        replace_atomically(path, fail)

    assert contents(tmp_path) == {"cine.nrrd": b"before"}


def test_a_link_is_replaced_by_a_link_and_what_it_leads_to_is_not_touched(tmp_path):
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.chmod(0o400)
    link.symlink_to(old)

    replace_atomically(link, lambda partial: partial.symlink_to(new))

    assert link.readlink() == new
    assert (old.read_bytes(), new.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", b"new", 3)


def test_only_ones_own_abandoned_files_are_removed(tmp_path):
    for name in (".0123456789abcdef.tmp.a.json", ".0123456789abcdef.tmp.b.csv", ".hidden", "a.json"):
        (tmp_path / name).touch()

    remove_abandoned(tmp_path, lambda name: name == "a.json")
    assert sorted(contents(tmp_path)) == [".0123456789abcdef.tmp.b.csv", ".hidden", "a.json"]

    remove_abandoned(tmp_path)
    assert sorted(contents(tmp_path)) == [".hidden", "a.json"]


def test_a_killed_holder_lets_go_of_the_lock(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError), locked(path, timeout_s=0):
            pass

        holder.kill()
        holder.wait()

    with locked(path, timeout_s=0):
        pass


def test_threads_of_one_program_wait_for_each_other(tmp_path):
    inside, most = 0, 0

    def hold():
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / ".lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (inside, most) == (0, 1)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to look like one" * 40, b""])
def test_a_damaged_database_is_begun_anew(tmp_path, content):
    (tmp_path / "a.sqlite").write_bytes(content)

    assert SqliteFile(tmp_path / "a.sqlite", SCHEMA, 1).rows("SELECT * FROM kept") == []


def test_a_database_with_a_damaged_page_is_begun_anew(tmp_path):
    path = tmp_path / "a.sqlite"
    file = SqliteFile(path, SCHEMA, 1)
    with file.changing() as connection:
        connection.executemany("INSERT INTO kept VALUES (?, ?)", [(n, "x" * 500) for n in range(100)])
    content = bytearray(path.read_bytes())
    content[5 * 4096 : 6 * 4096] = b"?" * 4096
    path.write_bytes(content)

    assert SqliteFile(path, SCHEMA, 1).rows("SELECT * FROM kept") == []


def test_a_database_of_another_version_is_begun_anew_and_one_of_this_is_kept(tmp_path):
    path = tmp_path / "a.sqlite"
    with SqliteFile(path, SCHEMA, 1).changing() as connection:
        connection.execute("INSERT INTO kept VALUES (1, 'a')")

    assert SqliteFile(path, SCHEMA, 1).rows("SELECT text FROM kept WHERE number = ?", (1,)) == [("a",)]
    assert SqliteFile(path, SCHEMA, 2).rows("SELECT text FROM kept") == []


def test_a_change_that_fails_changes_nothing(tmp_path):
    file = SqliteFile(tmp_path / "a.sqlite", SCHEMA, 1)

    with pytest.raises(sqlite3.IntegrityError), file.changing() as connection:
        connection.execute("INSERT INTO kept VALUES (1, 'a')")
        connection.execute("INSERT INTO kept VALUES (1, 'b')")

    assert file.rows("SELECT * FROM kept") == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists the files a program has open")
def test_a_database_is_open_only_while_it_is_used(tmp_path):
    file = SqliteFile(tmp_path / "a.sqlite", SCHEMA, 1)
    file.rows("SELECT * FROM kept")

    open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]

    assert not any("a.sqlite" in name for name in open_files)


def test_threads_change_a_database_together_and_lose_nothing(tmp_path):
    file = SqliteFile(tmp_path / "a.sqlite", SCHEMA, 1)

    def add(first):
        for number in range(first, first + 10):
            with file.changing() as connection:
                connection.execute("INSERT INTO kept VALUES (?, '')", (number,))

    threads = [threading.Thread(target=add, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert file.rows("SELECT COUNT(*) FROM kept") == [(40,)]
