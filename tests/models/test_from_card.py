# SPDX-License-Identifier: Apache-2.0
import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from echo_plugin.errors import ModelMismatchError
from echo_plugin.model_card import ModelCard
from echo_plugin.models.checkpoint import build_detector, build_embedder, build_view_classifier
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

MakeCard = Callable[..., ModelCard]


@pytest.mark.heavy
def test_networks_are_rebuilt_as_their_cards_say(make_card: MakeCard) -> None:
    detector = DetectorConfig(input_size_px=96, backbone="resnet18")
    embedder = EmbedderConfig(embedding_size=64)
    views = ViewConfig(classes=len(make_card(ViewConfig(classes=2)).classes), gru_size=32)

    assert build_detector(make_card(detector)).config == detector
    assert build_embedder(make_card(embedder)).config == embedder
    assert build_view_classifier(make_card(views)).config == views


def test_a_detector_has_the_anchors_of_its_card(make_card: MakeCard) -> None:
    fitted = DetectorConfig(input_size_px=64, anchor_shapes=(0.25,) * 48)
    card = make_card(fitted)

    assert build_detector(card).config == fitted
    assert build_detector(card).anchor_generator.cell_anchors[0].tolist()[0] == [-8.0, -8.0, 8.0, 8.0]


def test_building_leaves_the_callers_seed_alone(make_card: MakeCard) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    build_embedder(make_card(EmbedderConfig()))

    assert torch.equal(torch.rand(1), expected)


def test_classes_in_another_order_are_those_of_the_card_and_one_of_them_is_normal(make_card: MakeCard) -> None:
    card = dataclasses.replace(make_card(EmbedderConfig()), classes=("ASD", "Normal", "VSD"))

    assert card.normal_id == 1
    with pytest.raises(ModelMismatchError, match=r"names \['ASD', 'PFO', 'VSD'\], .*one of them Normal"):
        build_embedder(dataclasses.replace(card, classes=("ASD", "PFO", "VSD")))


def test_the_classes_of_an_embedder_are_those_of_its_card(make_card: MakeCard) -> None:
    config = EmbedderConfig(classes=4)
    card = dataclasses.replace(make_card(config), classes=("Normal", "AVSD", "PFO", "TOF"))

    assert build_embedder(card).centres.shape == (512, 4)
    with pytest.raises(ModelMismatchError, match=r"names \['Normal', 'ASD'\], its network has 4 classes"):
        build_embedder(dataclasses.replace(card, classes=("Normal", "ASD")))
    with pytest.raises(ModelMismatchError, match="tells apart defect 'HLHS'"):
        build_embedder(dataclasses.replace(card, classes=("Normal", "ASD", "VSD", "HLHS")))


def test_a_card_of_another_network_is_refused(make_card: MakeCard) -> None:
    with pytest.raises(ModelMismatchError, match="its network is a ViewConfig; a EmbedderConfig is accepted"):
        make_card(ViewConfig(classes=2)).network_as(EmbedderConfig)


def test_unknown_view_is_refused(make_card: MakeCard) -> None:
    card = dataclasses.replace(make_card(ViewConfig(classes=2)), classes=("A4C", "A9C"))

    with pytest.raises(ModelMismatchError, match="tells apart view 'A9C'"):
        build_view_classifier(card)


def test_number_of_views_and_outputs_must_agree(make_card: MakeCard) -> None:
    card = dataclasses.replace(make_card(ViewConfig(classes=3)), classes=("A4C", "OTHER"))

    with pytest.raises(ModelMismatchError, match="names 2 views but its network has 3"):
        build_view_classifier(card)


@pytest.mark.heavy
def test_networks_are_imported_without_the_compiler() -> None:
    """It costs seconds of every command; torchvision's one question to it is still answered by it."""
    code = (
        "import sys, types, echo_plugin.models.checkpoint\n"
        "strays = {'torch._dynamo', 'monai', 'pytorch_metric_learning', 'pydicom'} & set(sys.modules)\n"
        "assert not strays, strays\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "sys.modules['torch._dynamo'] = types.ModuleType('torch._dynamo')\n"
        "sys.modules['torch._dynamo.utils'] = types.SimpleNamespace(is_compile_supported=lambda d: d == 'mars')\n"
        "assert is_compile_supported('mars') and not is_compile_supported('cpu')\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
