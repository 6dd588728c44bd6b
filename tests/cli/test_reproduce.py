# SPDX-License-Identifier: Apache-2.0
import pytest
from typer.testing import CliRunner

from echo_plugin.cli.main import app
from echo_plugin.papers import defects
from echo_plugin.papers.defects_table import PAPER_SETTING, summarise_sweep, summarise_table

REPORT = {"on_phantoms": True, "seeds": 1, "cost_s": 60.0, "rows": [], "sentences": ["No row."], "paper": {}}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the command asks for, and a function that gives it words."""
    found = {}

    def reproduce_defects(studies, out, rows, **options):
        found.update(options, rows=[row.name for row in rows])
        return REPORT

    def command(*words):
        words = ["reproduce", "defects", str(tmp_path / "out"), "--studies", str(tmp_path), *words]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return found | {"output": result.output}

    monkeypatch.setattr(defects, "reproduce_defects", reproduce_defects)
    return command


def test_a_sweep_is_summarised_by_validation_patients_and_has_the_papers_setting(asked):
    sweep, table = asked("--sweep"), asked()

    assert sweep["summarise"] is summarise_sweep
    assert PAPER_SETTING in sweep["rows"]
    assert table["summarise"] is summarise_table
    assert "* No row." in table["output"]


def test_a_small_table_leaves_a_third_of_its_hour_to_all_that_is_not_training(asked):
    small = asked("--small")

    trainings = small["seeds"] * sum(name != "HOG + SVM" for name in small["rows"])
    assert trainings == 33
    assert trainings * small["options"].max_minutes <= 40
