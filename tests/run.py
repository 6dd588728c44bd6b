# SPDX-License-Identifier: Apache-2.0
"""Install the app with its test tools into ``.venv`` (first run only), then lint, type-check and test.

Everything after the file's name goes to pytest; ends with pytest's totals and the exit code of the first failure.

    python3.11 tests/run.py
    python3.11 tests/run.py -m "not slicer" -k markups
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run every check, pytest last; return 0 when all passed."""
    spec = importlib.util.spec_from_file_location("start", ROOT / "apps" / "echo" / "start.py")
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    start.install(ROOT / "tests" / "requirements.lock")

    python = [str(start.PYTHON), "-m"]
    oxfmt = [str(start.SCRIPTS / "oxfmt"), "--config", "tests/viewers/oxfmt.json"]
    checks = [
        [*python, "ruff", "check", "."],
        [*python, "ruff", "format", "--check", "."],
        [*oxfmt, "--check", "echo_plugin/viewers", "tests/viewers"],
        [*python, "mypy"],
        [*python, "pytest", "-m", "", "-n", "2", "--dist", "loadfile", *sys.argv[1:]],
    ]
    codes = []
    for check in checks:
        print("$", *check, flush=True)
        codes.append(subprocess.run(check, cwd=ROOT, check=False).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
