# SPDX-License-Identifier: Apache-2.0
"""The verbs of the evidence for a defect: help, exit codes, one sentence for a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "echo_plugin", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("verb", ["gallery", "verify", "patient", "explain"])
def test_every_verb_helps_with_an_example(verb: str) -> None:
    answer = run(verb, "--help")

    assert answer.returncode == 0
    assert f"Example: monailabel-echo {verb}" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "absent.dcm", "absent.dcm"), "absent.dcm"),
        (("patient", "absent"), "absent"),
        (("gallery", "--studies", "absent"), "Study folder 'absent' is no directory"),
    ],
)
def test_a_failure_ends_with_1_and_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    answer = run(*arguments)

    assert answer.returncode == 1
    assert sentence in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_past_cases_are_not_put_among_the_public_weights(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()

    answer = run("gallery", "--studies", tmp_path / "studies", "--models", ROOT / "apps" / "echo" / "model")

    assert answer.returncode == 1
    assert answer.stderr.startswith("A gallery is patient data")
