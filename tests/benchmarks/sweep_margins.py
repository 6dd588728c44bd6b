# SPDX-License-Identifier: Apache-2.0
"""Every s and m of ArcFace, and a softmax, on the features of one backbone: figures of validation patients.

Only heads differ, so that one line takes seconds and not the hours of a network; ``reproduce defects --sweep`` trains
whole networks. The paper's setting, s 64 and m 0.5, is among them.

python tests/benchmarks/sweep_margins.py STUDIES MODELS [--cache DIR]
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from echo_plugin.answer.defect_rule import DefectRule
from echo_plugin.measure.verification import acceptance_curve, area_under, cross_patient_pairs
from echo_plugin.models.checkpoint import build_embedder, load_published
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.papers.defects_table import SWEEP_MARGINS, SWEEP_SCALES
from echo_plugin.training.datasets import open_labelled_folder
from echo_plugin.training.defect_calibration import EmbeddedCrops, embed_crops, fit_temperature
from echo_plugin.training.defect_crops import boxes_to_crop, prepare_defect_crops
from echo_plugin.training.defects import backbone_features, learn_head
from echo_plugin.training.provenance import known_patients

STEPS = 500


def figures(rule: DefectRule, embedded: EmbeddedCrops, truth: torch.Tensor) -> list[float]:
    """Return balanced accuracy and log loss of cines, and verification AUC by embeddings and by signatures."""
    seen = torch.where(truth >= 0)[0]
    labels = truth[seen]
    with torch.inference_mode():
        cines, logits = (part[seen] for part in embedded.of_cines(rule))
        temperature = fit_temperature(logits, labels)
        signatures = rule.signature((logits / temperature).softmax(dim=1))
        vectors = [torch.nn.functional.normalize(cines, dim=1), signatures]
    said = logits.argmax(dim=1)
    recalls = [float((said[labels == k] == k).float().mean()) for k in labels.unique()]
    owners = [embedded.cines[number].patient_id for number in seen.tolist()]
    areas = []
    for each in vectors:
        pairs = cross_patient_pairs(each.double().numpy(), labels.numpy(), owners)
        areas.append(area_under(*acceptance_curve(pairs.similarity, pairs.is_same)[1:]))
    return [float(np.mean(recalls)), float(cross_entropy(logits.double() / temperature, labels)), *areas]


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    card, state = load_published(options.models, "defect_embedder")
    model = build_embedder(card)
    model.load_state_dict(state)
    rule = DefectRule.of(model, card)
    labelled = open_labelled_folder(options.studies)
    walls = model.config.cropping
    cines = [cine for cine in labelled.cines if cine.annotation.defect and boxes_to_crop(cine, walls)]
    parts = known_patients(card, sorted({cine.patient_id for cine in cines}))
    crops = prepare_defect_crops(
        labelled,
        cines,
        size_px=model.config.input_size_px,
        cropping=walls,
        frames_per_cine=8,
        cache_dir=options.cache,
    )
    learned_from = crops.frames.of([cine for cine in cines if parts.get(cine.patient_id) == "train"])
    learned_from = learned_from[crops.is_example[learned_from]][::2]
    measured = [cine for cine in cines if parts.get(cine.patient_id) == "validation"]
    truth = crops.truths(measured, walls)
    features = backbone_features(model, crops, learned_from)
    embedded = embed_crops(model, crops, measured)
    items = torch.cat([crops.frames.of([cine]) for cine in measured])
    seen = backbone_features(model, crops, items)
    patients = len({cine.patient_id for cine in measured})
    print(f"{len(measured)} cines of {patients} validation patients; heads of {STEPS} batches on one backbone\n")
    print("| head | s | m | balanced accuracy | log loss | verification, embeddings | verification, probabilities |")
    print("|---|---|---|---|---|---|---|")
    settings = [("softmax", 16.0, 0.0)] + [("arcface", s, m) for s in SWEEP_SCALES for m in SWEEP_MARGINS]
    for head, scale, margin in settings:
        torch.manual_seed(0)
        config = dataclasses.replace(model.config, head=head, scale=scale, margin_rad=margin, sub_centres=1)
        own = DefectEmbedder(config)
        own.backbone = model.backbone
        own.renew_head()
        learn_head(own, features, crops.labels[learned_from], crops.cells[learned_from], STEPS)
        with torch.inference_mode():
            vectors = own.embed_features(seen)
        cells = [
            f"{value:.3f}"
            for value in figures(
                dataclasses.replace(rule, embedder=own), dataclasses.replace(embedded, embeddings=vectors), truth
            )
        ]
        print(f"| {head} | {scale:g} | {margin:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    from results_page import printed_page

    with printed_page("Scale and margin of ArcFace on one backbone"):
        main()
