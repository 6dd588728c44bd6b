# SPDX-License-Identifier: Apache-2.0
import pytest

from echo_plugin.durable import replace_atomically


def test_what_a_maker_leaves_half_made_replaces_nothing(tmp_path):
    path = tmp_path / "cine.nrrd"
    path.write_bytes(b"before")

    def fail(partial):
        partial.write_bytes(b"half")
        raise OSError

    with pytest.raises(OSError):
        replace_atomically(path, fail, suffix=".nrrd")

    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("cine.nrrd", b"before")]


def test_a_link_is_replaced_by_a_link_and_what_it_leads_to_is_not_touched(tmp_path):
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.chmod(0o400)
    link.symlink_to(old)

    replace_atomically(link, lambda partial: partial.symlink_to(new))

    assert link.readlink() == new
    assert (old.read_bytes(), new.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", b"new", 3)
