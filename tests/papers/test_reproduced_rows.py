# SPDX-License-Identifier: Apache-2.0
import dataclasses
from urllib.error import URLError

import pytest

from echo_plugin.papers.defects import reproduce_defects
from echo_plugin.papers.defects_table import ARCFACE_AND_SOFTMAX, more_rows, own_rows, paper_rows, sweep_rows
from echo_plugin.training.options import DefectOptions


def test_rows_are_trainings_that_can_be_asked_for_and_have_names_of_their_own():
    rows = [*paper_rows(), *own_rows(), *more_rows(), *sweep_rows()]

    assert len({row.file for row in rows}) == len(rows)
    assert len(sweep_rows()) == 20
    for row in rows:
        DefectOptions(**(row.options or {}))


def test_arcface_and_softmax_are_compared_among_networks_that_begin_alike():
    rows = {row.name: DefectOptions(**row.options) for row in [*paper_rows(), *own_rows()] if row.options is not None}
    imagenet = [name for name, options in rows.items() if options.start == "imagenet"]

    assert imagenet == ["ArcFace, ImageNet", "softmax, ImageNet", "DenseNet-121 softmax, ImageNet"]
    for arcface, softmax in ARCFACE_AND_SOFTMAX.values():
        assert rows[arcface] == dataclasses.replace(rows[softmax], head=None)
        assert rows[softmax].head == "softmax"


@pytest.mark.heavy
def test_rows_with_imagenet_weights_say_that_they_were_not_run_where_there_are_none(
    easy_studies, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    rows = [row for row in paper_rows("resnet18", 48) if "ImageNet" in row.name]

    report = reproduce_defects(easy_studies, tmp_path, rows, seeds=1, options=DefectOptions(device="cpu"))

    bodies = ["resnet18", "resnet18", "densenet121"]
    for row, body in zip(report["rows"], bodies, strict=True):
        assert row["not_run"].startswith(f"ImageNet weights of {body} are not at {tmp_path}")


def _no_network(*args, **kwargs):
    raise URLError("no network")
