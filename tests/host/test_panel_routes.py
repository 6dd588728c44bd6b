# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

from echo_plugin.anatomy import Defect
from echo_plugin.host import panel_routes


def test_every_defect_that_can_be_learned_can_be_said(monkeypatch):
    app = SimpleNamespace(pipeline=SimpleNamespace(cards=dict), _strategies={}, _trainers={})
    monkeypatch.setattr(panel_routes, "echo_app", lambda: app)

    assert panel_routes.about()["defects"] == [defect.value for defect in Defect]
