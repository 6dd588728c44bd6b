# SPDX-License-Identifier: Apache-2.0
import json
import shutil

from echo_plugin.training.datasets import open_labelled_folder, phantom_command, phantom_ids


def _list_as_phantoms(studies, image_ids):
    (studies / "phantom.csv").write_text("file,image_id\n" + "".join(f"x,{image_id}\n" for image_id in image_ids))


def test_a_folder_is_phantoms_only_when_the_phantom_made_every_cine(easy_studies, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(easy_studies, studies)
    image_ids = [cine.image_id for cine in open_labelled_folder(studies).cines]

    none = open_labelled_folder(studies).provenance
    _list_as_phantoms(studies, image_ids[1:])
    some = open_labelled_folder(studies).provenance
    _list_as_phantoms(studies, image_ids)

    assert none == "annotations of a study folder"
    assert some == "annotations of a study folder, phantoms among them"
    assert open_labelled_folder(studies).provenance == "phantoms only"


def test_the_command_of_a_phantom_folder_makes_it_again(tmp_path):
    made = {"patients": 4, "seed": 57, "frames": 24, "views": ["A4C", "SC-4C"]}
    (tmp_path / "phantom.json").write_text(json.dumps(made))

    assert phantom_command(tmp_path) == (
        "monailabel-echo phantom DIR --patients 4 --seed 57 --frames 24 --views A4C,SC-4C"
    )


def test_the_command_of_fetal_stills_says_so(tmp_path):
    (tmp_path / "phantom.json").write_text(json.dumps({"kind": "fetal", "patients": 4, "seed": 5, "frames": 2}))

    assert phantom_command(tmp_path) == "monailabel-echo phantom DIR --patients 4 --seed 5 --frames 2 --fetal"


def test_a_folder_of_others_has_no_phantoms(tmp_path):
    assert phantom_ids(tmp_path) == frozenset()
    assert phantom_command(tmp_path) is None
