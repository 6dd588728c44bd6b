# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

from echo_plugin.anatomy import Defect
from echo_plugin.host.routes import panel


def test_every_defect_that_can_be_learned_can_be_said(monkeypatch):
    app = SimpleNamespace(pipeline=SimpleNamespace(cards=dict), strategies={}, trainers={})
    monkeypatch.setattr(panel, "echo_app", lambda: app)

    assert panel.about()["defects"] == [defect.value for defect in Defect]
