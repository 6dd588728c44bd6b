# SPDX-License-Identifier: Apache-2.0
"""How the panel joins two annotations of a cine that two readers changed at once; its code runs in Node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import echo_plugin

SAID = ("defect", "defect_size_mm", "defect_visible")
BASE = ("ASD", 8.0, True)


def merged(base: tuple, mine: tuple, theirs: tuple) -> tuple:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node on this machine (Debian: apt-get install nodejs)")
    script = (Path(echo_plugin.__file__).parent / "viewers" / "ohif" / "annotation.js").read_text(encoding="utf-8")
    told = [{"boxes": [], "annotated_frames": [], **dict(zip(SAID, one, strict=True))} for one in (base, mine, theirs)]
    script += f"\nconsole.log(JSON.stringify(merge(...{json.dumps(told)})));"
    run = subprocess.run([node, "--input-type=module"], input=script, capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    return tuple(said[name] for name in SAID)


@pytest.mark.parametrize(
    ("mine", "theirs", "joined"),
    [
        (("ASD", 8.0, False), ("ASD", 6.5, True), ("ASD", 6.5, False)),
        (("ASD", 8.0, False), ("Normal", None, None), ("Normal", None, None)),
        (("VSD", None, None), ("ASD", 6.5, False), ("VSD", None, None)),
        (("VSD", 3.0, None), ("Normal", None, None), ("VSD", 3.0, None)),
        (("VSD", 3.0, None), ("VSD", 4.0, True), ("VSD", 3.0, None)),
        (BASE, ("VSD", 3.0, False), ("VSD", 3.0, False)),
    ],
)
def test_size_and_whether_it_is_shown_stay_with_the_defect_they_were_said_of(mine, theirs, joined):
    assert merged(BASE, mine, theirs) == joined
