# SPDX-License-Identifier: Apache-2.0
"""What a training goes on from."""

import dataclasses
import shutil

import pytest
import torch

from echo_plugin.anatomy import NED_12, VIEW_VOCABULARIES, Defect
from echo_plugin.errors import ModelMismatchError, ModelNotFoundError
from echo_plugin.io.study_folder import StudyFolder
from echo_plugin.model_card import ModelCard, TrainingCohort
from echo_plugin.models.checkpoint import load_published, publish
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig
from echo_plugin.training.defect_crops import SUB_CENTRES, chosen_recipe
from echo_plugin.training.defects import train_defects
from echo_plugin.training.detector import train_detector
from echo_plugin.training.options import DefectOptions, DetectorOptions, TrainOptions, ViewOptions
from echo_plugin.training.start import Start, load_start, with_network_of_start
from echo_plugin.training.views import train_views

pytestmark = pytest.mark.heavy

torch.set_num_threads(1)
CONFIG = ViewConfig(classes=2, input_size_px=64)


@pytest.fixture
def published(tmp_path):
    """A folder with a view classifier, and its network."""
    network = ViewClassifier(CONFIG)
    data = TrainingCohort("noise", patients=1, cines=1, digest="0")
    card = ModelCard("view_classifier", "4", "view", "test", ("A4C", "OTHER"), CONFIG, data)
    publish(tmp_path, network.state_dict(), card)
    return tmp_path, network


@pytest.mark.parametrize(
    ("network", "body"),
    [
        (DefectEmbedder(EmbedderConfig(input_size_px=64)), "backbone"),
        (SeptalDetector(DetectorConfig(backbone="resnet18", input_size_px=64)), "backbone.body"),
    ],
    ids=["defects", "detector"],
)
def test_the_view_encoder_becomes_the_body_of_another_network(published, network, body):
    models, encoder = published
    name = "septal_detector" if body.endswith("body") else "defect_embedder"

    start = load_start(network, name, models, TrainOptions(start="views"))

    loaded = network.get_submodule(body).state_dict()
    wanted = encoder.backbone.state_dict()
    for key in ("conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"):
        torch.testing.assert_close(loaded[key], wanted[key])
    assert start.card.name == "view_classifier"


def test_an_encoder_of_another_architecture_is_refused(published):
    models, _ = published
    network = DefectEmbedder(EmbedderConfig(backbone="resnet50", input_size_px=64))

    with pytest.raises(ModelMismatchError, match=r"view_classifier: its encoder has no backbone\.\S+ of shape"):
        load_start(network, "defect_embedder", models, TrainOptions(start="views"))


def test_an_absent_view_encoder_is_no_silent_scratch(tmp_path):
    network = DefectEmbedder(EmbedderConfig(input_size_px=64))

    with pytest.raises(ModelNotFoundError, match="view_classifier"):
        load_start(network, "defect_embedder", tmp_path, TrainOptions(start="views"))


def test_weights_that_have_learned_go_on_at_a_fifth_of_the_rate(published):
    models, _ = published

    own = load_start(ViewClassifier(CONFIG), "view_classifier", models, TrainOptions(start="starter"))

    assert own.rate_for("view_classifier") == pytest.approx(0.2)
    assert own.rate_for("defect_embedder") == 1.0
    assert Start().rate_for("view_classifier") == 1.0


@pytest.mark.parametrize("contrast", [True, False])
def test_weights_go_on_with_the_contrast_that_they_were_taught(tmp_path, contrast):
    config = DetectorConfig(input_size_px=64, is_standardised=contrast)
    card = ModelCard(
        "septal_detector", "1", "detection", "test", ("interatrial", "interventricular"), config,
        TrainingCohort("noise", patients=1, cines=1, digest="0"),
    )  # fmt: skip
    publish(tmp_path, SeptalDetector(config).state_dict(), card)
    network = SeptalDetector(DetectorConfig(input_size_px=64, is_standardised=not contrast))

    load_start(network, "septal_detector", tmp_path, TrainOptions(start="starter"))

    assert network.config.is_standardised is network.backbone.is_standardised is contrast


def _published(folder, name, network, classes, version="7"):
    config = network.config
    card = ModelCard(
        name, version, "test", "test", classes, config,
        TrainingCohort("noise", patients=1, cines=1, digest="0"),
    )  # fmt: skip
    publish(folder, network.state_dict(), card)


def _detector(folder):
    network = SeptalDetector(DetectorConfig(backbone="mobilenet_v3_large", input_size_px=64))
    _published(folder, "septal_detector", network, ("interatrial", "interventricular"))


def _embedder(folder, classes=("Normal", "ASD", "VSD"), head="cosface"):
    config = EmbedderConfig(
        "resnet18",
        input_size_px=64,
        classes=len(classes),
        cropping="union",
        head=head,
        sub_centres=SUB_CENTRES if head == "subcenter" else 1,
    )
    network = DefectEmbedder(config)
    if head == "softmax":
        network.bias.data = torch.arange(1.0, len(classes) + 1)
    _published(folder, "defect_embedder", network, classes)


def _view_classifier(folder):
    config = ViewConfig(12, input_size_px=64, temporal="gru", sampling="spaced", border=0.1)
    _published(folder, "view_classifier", ViewClassifier(config), tuple(view.value for view in NED_12))


@pytest.mark.parametrize(
    ("put", "train", "options", "wanted"),
    [
        (_detector, train_detector, DetectorOptions, {"backbone": "mobilenet_v3_large"}),
        (_embedder, train_defects, DefectOptions, {"cropping": "union", "head": "cosface"}),
        (
            _view_classifier,
            train_views,
            ViewOptions,
            {"temporal": "gru", "sampling": "spaced", "classes": 12, "border": 0.1},
        ),
    ],
)
def test_a_training_that_names_no_network_goes_on_with_the_published_one(
    easy_studies, tmp_path, put, train, options, wanted
):
    put(tmp_path)

    card = train(easy_studies, tmp_path, options(epochs=2, batch_size=12, device="cpu"))

    assert {key: getattr(card.network, key) for key in wanted} == wanted
    assert card.input_size_px == 64
    assert card.version == "8"
    assert f"going on from {card.name} 7" in card.trained_on


@pytest.mark.parametrize(
    ("put", "train", "options", "asked", "words"),
    [
        (
            _detector,
            train_detector,
            DetectorOptions,
            {"backbone": "resnet18"},
            "backbone 'mobilenet_v3_large', not 'resnet18'",
        ),
        (
            _embedder,
            train_defects,
            DefectOptions,
            {"cropping": "walls"},
            "cropping 'union', not 'walls'; leave --crops out",
        ),
        (
            _view_classifier,
            train_views,
            ViewOptions,
            {"temporal": "image"},
            "temporal 'gru', not 'image'; leave --pooling out",
        ),
        (
            _view_classifier,
            train_views,
            ViewOptions,
            {"vocabulary": "paediatric"},
            "vocabulary 'ned-12', not 'paediatric'",
        ),
    ],
)
def test_another_network_than_the_published_one_is_refused_unless_it_begins_anew(
    easy_studies, tmp_path, put, train, options, asked, words
):
    put(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file()}

    with pytest.raises(ModelMismatchError, match=f" 7 in .* has {words}.*--from scratch"):
        train(easy_studies, tmp_path, options(epochs=1, device="cpu", **asked))

    assert {path: path.read_bytes() for path in before} == before


CONFIG_16 = ViewConfig(classes=16, input_size_px=32, temporal="gru", sampling="spaced")


@pytest.fixture
def paediatric(tmp_path):
    """The file of a view classifier of the 16 paediatric views, by GRU over spaced frames."""
    names = tuple(view.value for view in VIEW_VOCABULARIES["paediatric"])
    _published(tmp_path / "published", "view_classifier", ViewClassifier(CONFIG_16), names)
    return tmp_path / "published" / "view_classifier.safetensors"


def test_a_named_file_of_the_own_model_says_the_network_and_the_views(paediatric, tmp_path):
    options = with_network_of_start(ViewOptions(start=str(paediatric)), "view_classifier", tmp_path / "mine")

    assert (options.vocabulary, options.temporal, options.sampling) == ("paediatric", "gru", "spaced")
    assert (options.backbone, options.image_size) == ("resnet18", 32)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"vocabulary": "ned-16"}, "vocabulary 'paediatric', not 'ned-16'; leave --vocabulary out"),
        ({"temporal": "weave"}, "temporal 'gru', not 'weave'; leave --pooling out"),
    ],
)
def test_a_named_file_is_not_gone_on_with_as_another_network(easy_studies, paediatric, tmp_path, asked, words):
    options = ViewOptions(start=str(paediatric), device="cpu", **asked)

    with pytest.raises(ModelMismatchError, match=words):
        train_views(easy_studies, tmp_path / "mine", options)


def test_a_view_does_not_become_another_because_the_weights_fit(paediatric, tmp_path):
    """Nor does another way to join frames, even where a recipe names the network."""
    options, folder = ViewOptions(recipe="usf-mae"), paediatric.parent
    ned = [view.value for view in VIEW_VOCABULARIES["ned-16"]]
    named = dataclasses.replace(options, start=str(paediatric))

    with pytest.raises(
        ModelMismatchError, match=r"7 tells apart A4C, A5C, .* OTHER, not A5C, .*; name its --vocabulary"
    ):
        load_start(ViewClassifier(CONFIG_16), "view_classifier", tmp_path, named, ned)
    with pytest.raises(ModelMismatchError, match="its temporal is 'gru', not 'weave'"):
        load_start(ViewClassifier(dataclasses.replace(CONFIG_16, temporal="weave")), "view_classifier", tmp_path, named)
    assert load_start(ViewClassifier(CONFIG_16), "view_classifier", folder, options, ned) == Start()


def test_a_new_beginning_is_published_above_what_was_there(easy_studies, tmp_path):
    _detector(tmp_path)
    options = DetectorOptions(epochs=1, image_size=64, device="cpu", backbone="resnet18", start="scratch")

    card = train_detector(easy_studies, tmp_path, options)

    assert (card.version, card.network.backbone) == ("8", "resnet18")
    assert "going on" not in card.trained_on


def test_damaged_weights_are_not_published_over(easy_studies, tmp_path):
    _detector(tmp_path)
    (tmp_path / "septal_detector.safetensors").write_bytes(b"damaged")

    with pytest.raises(ModelMismatchError, match="weights have SHA-256"):
        train_detector(easy_studies, tmp_path, DetectorOptions(epochs=1, device="cpu"))


KNOWN = ("Normal", "ASD", "VSD", "PFO")


@pytest.mark.parametrize("head", ["arcface", "subcenter", "softmax"])
@pytest.mark.parametrize(
    "classes",
    [(*KNOWN, "AVSD"), ("Normal", "ASD", "VSD", "AVSD"), ("Normal", "ASD", "VSD", "AVSD", "PFO")],
    ids=["added", "another of as many", "other order"],
)
def test_centres_are_found_by_the_name_of_their_class(tmp_path, head, classes):
    _embedder(tmp_path, KNOWN, head)
    options = with_network_of_start(DefectOptions(), "defect_embedder", tmp_path)
    network = DefectEmbedder(dataclasses.replace(chosen_recipe(options).network, classes=len(classes)))
    own, each = network.centres.detach().clone(), network.config.sub_centres

    start = load_start(network, "defect_embedder", tmp_path, options, classes)

    torch.testing.assert_close(network.backbone.conv1.weight, start.state["backbone.conv1.weight"])
    for number, name in enumerate(classes):
        there = KNOWN.index(name) if name in KNOWN else number
        wanted = start.state["centres"] if name in KNOWN else own
        here = network.centres[:, number * each : (number + 1) * each]
        torch.testing.assert_close(here, wanted[:, there * each : (there + 1) * each])
        if head == "softmax":
            assert network.bias[number].item() == (there + 1.0 if name in KNOWN else 0.0)


@pytest.mark.parametrize("head", ["arcface", "softmax"])
def test_a_class_that_nobody_labelled_this_time_is_not_forgotten(easy_studies, tmp_path, head):
    _embedder(tmp_path / "models", KNOWN, head)
    root = shutil.copytree(easy_studies, tmp_path / "studies")
    folder = StudyFolder(root)
    for image_id in folder.annotated_ids():
        if folder.entry(image_id).patient_id in ("child00", "child03", "child06", "child09"):
            said = dataclasses.replace(folder.annotation(image_id), defect=Defect.AVSD)
            folder.save_annotation(said, author="test")
    _, before = load_published(tmp_path / "models", "defect_embedder")

    card = train_defects(root, tmp_path / "models", DefectOptions(epochs=1, batch_size=12, device="cpu"))

    assert card.classes == (*KNOWN, "AVSD")
    _, after = load_published(tmp_path / "models", "defect_embedder")
    likeness = torch.cosine_similarity(after["centres"].float()[:, :4], before["centres"].float(), dim=0)
    assert likeness.min() > 0.9


def test_a_recipe_with_a_network_of_its_own_begins_anew_where_another_is_published(tmp_path):
    config = EmbedderConfig(input_size_px=64)
    _published(tmp_path, "defect_embedder", DefectEmbedder(config), ("Normal", "ASD", "VSD"))
    options = with_network_of_start(DefectOptions(recipe="paper"), "defect_embedder", tmp_path)
    network = DefectEmbedder(dataclasses.replace(config, cropping="walls"))

    assert options == DefectOptions(recipe="paper")
    assert load_start(network, "defect_embedder", tmp_path, options) == Start()
