# SPDX-License-Identifier: Apache-2.0
"""Weights that others learned: ImageNet's as torchvision keeps them, and files that a person names."""

import urllib.error

import pytest
import torch
from torchvision.models import get_model_weights, mobilenet_v3_large, resnet18

from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.models.body_weights import load_body
from echo_plugin.models.checkpoint import publish
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.network_config import DetectorConfig
from echo_plugin.training.options import TrainOptions
from echo_plugin.training.start import body_of, load_start

torch.set_num_threads(1)
MAKE = {"resnet18": resnet18, "mobilenet_v3_large": mobilenet_v3_large}


@pytest.fixture(scope="module")
def colour_networks():
    """torchvision's networks with weights of no meaning, running statistics included."""
    torch.manual_seed(5)
    networks = {name: make(weights=None) for name, make in MAKE.items()}
    for network in networks.values():
        network(torch.randn(4, 3, 64, 64))
        network.eval()
    return networks


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """torch's own folder of downloads on a machine without a network."""

    def no_network(*_arguments, **_options):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _detector(backbone="resnet18"):
    return SeptalDetector(DetectorConfig(backbone=backbone, input_size_px=64))


def _card(config):
    data = TrainingCohort("noise", patients=1, cines=1, digest="0")
    classes = ("interatrial", "interventricular")
    return ModelCard("septal_detector", "1", "detection", "test", classes, config, data)


@pytest.mark.parametrize(
    ("backbone", "layers"), [("resnet18", ("layer2", "layer3", "layer4")), ("mobilenet_v3_large", ("6", "12", "15"))]
)
def test_imagenet_weights_answer_grey_pictures_as_the_colour_network_does(
    downloads, colour_networks, tmp_path, backbone, layers
):
    network = colour_networks[backbone]
    torch.save(network.state_dict(), downloads / get_model_weights(backbone).DEFAULT.url.rsplit("/", 1)[1])
    detector = _detector(backbone)

    start = load_start(detector, "septal_detector", tmp_path, TrainOptions(start="imagenet"))

    grey = torch.randn(2, 1, 64, 64)
    seen, x = {}, grey.expand(-1, 3, -1, -1)
    body = network if backbone == "resnet18" else network.features
    for name, layer in body.named_children():
        if name == "avgpool":
            break
        seen[name] = x = layer(x)
    with torch.no_grad():
        ours = detector.eval().backbone.body(grey)
    for answer, layer in zip(ours.values(), layers, strict=True):
        torch.testing.assert_close(answer, seen[layer], rtol=1e-3, atol=1e-4)
    assert start.card is None
    assert start.words.startswith("the body of ImageNet (")


def test_imagenet_without_a_network_says_in_one_sentence_where_the_file_goes(downloads, tmp_path):
    with pytest.raises(ModelNotFoundError) as refused:
        load_start(_detector(), "septal_detector", tmp_path, TrainOptions(start="imagenet"))

    text = str(refused.value)
    assert text.startswith(f"ImageNet weights of resnet18 are not at {downloads / 'resnet18-f37072fd.pth'} and cannot")
    assert "Network is unreachable" in text
    assert "\n" not in text and text.endswith("put the file there, or start from scratch.")


def test_nothing_is_written_to_stdout_on_the_way(downloads, tmp_path, capsys):
    with pytest.raises(ModelNotFoundError):
        load_start(_detector(), "septal_detector", tmp_path, TrainOptions(start="imagenet"))

    assert capsys.readouterr().out == ""


def test_a_torchvision_file_becomes_the_body_and_is_named_in_the_provenance(colour_networks, tmp_path):
    torch.save(colour_networks["resnet18"].state_dict(), tmp_path / "mine.pth")
    detector = _detector()

    start = load_start(detector, "septal_detector", tmp_path, TrainOptions(start=str(tmp_path / "mine.pth")))

    wanted = colour_networks["resnet18"].layer3[0].conv1.weight
    assert torch.equal(detector.backbone.body.layer3[0].conv1.weight, wanted)
    assert "the body of mine.pth (sha256 " in start.words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"mine lacks 'layer1\.0\.conv1\.weight', which the backbone has"),
        (
            lambda s: s.update({"layer2.0.conv1.weight": torch.zeros(1)}),
            r"'layer2\.0\.conv1\.weight' of shape \(1,\); the backbone takes \(128, 64, 3, 3\)",
        ),
        (lambda s: s.update({"head.extra": torch.zeros(1)}), "has 'head.extra', which the backbone lacks"),
    ],
    ids=["missing", "misshapen", "unknown"],
)
def test_weights_are_refused_by_the_first_key_that_does_not_fit(colour_networks, change, words):
    state = dict(colour_networks["resnet18"].state_dict())
    change(state)

    with pytest.raises(ModelMismatchError, match=words):
        load_body(body_of(_detector()), state, "mine")


def test_weights_of_another_backbone_are_refused(colour_networks):
    with pytest.raises(ModelMismatchError, match="use its backbone"):
        load_body(body_of(_detector("mobilenet_v3_large")), colour_networks["resnet18"].state_dict(), "mine")


def test_a_published_file_is_gone_on_from_with_its_card(tmp_path):
    network = _detector()
    publish(tmp_path, network.state_dict(), _card(network.config))
    other = _detector()

    start = load_start(
        other,
        "septal_detector",
        tmp_path / "elsewhere",
        TrainOptions(start=str(tmp_path / "septal_detector.safetensors")),
    )

    assert start.card.name == "septal_detector"
    assert torch.equal(other.head.classification_head.cls_logits.bias, network.head.classification_head.cls_logits.bias)


def test_a_published_file_of_another_network_is_an_error_and_no_silent_scratch(tmp_path):
    network = _detector("mobilenet_v3_large")
    publish(tmp_path, network.state_dict(), _card(network.config))

    with pytest.raises(ModelMismatchError, match=r"lacks 'backbone\.body\.conv1\.weight'"):
        load_start(
            _detector(),
            "septal_detector",
            tmp_path,
            TrainOptions(start=str(tmp_path / "septal_detector.safetensors")),
        )


@pytest.mark.parametrize(("name", "words"), [("absent.pth", "does not exist"), ("odd.pth", "cannot be read")])
def test_files_that_are_no_weights_are_refused(tmp_path, name, words):
    (tmp_path / "odd.pth").write_bytes(b"odd")

    with pytest.raises((ModelNotFoundError, ModelMismatchError), match=words):
        load_start(_detector(), "septal_detector", tmp_path, TrainOptions(start=str(tmp_path / name)))


def test_code_in_a_weights_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")

    with pytest.raises(ModelMismatchError, match=r"trap\.pth cannot be read"):
        load_start(_detector(), "septal_detector", tmp_path, TrainOptions(start=str(tmp_path / "trap.pth")))
    assert not (tmp_path / "sprung").exists()
