# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import nn

from echo_plugin.answer import runtime
from echo_plugin.answer.runtime import Runtime, choose_device, choose_dtype, fold_batch_norms, prepare_network
from echo_plugin.models.defect_embedder import DefectEmbedder
from echo_plugin.models.septal_detector import SeptalDetector
from echo_plugin.models.view_classifier import ViewClassifier
from echo_plugin.network_config import DetectorConfig, EmbedderConfig, ViewConfig

torch.set_num_threads(1)
CPU = torch.device("cpu")


def test_absent_cuda_is_refused_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ValueError, match=r"Device cuda was asked for but torch .* sees none; use cpu or auto"):
        choose_device("cuda")
    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU


def test_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Device 'tpu' is unknown; auto, cpu, cuda are accepted"):
        choose_device("tpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [({"avx2"}, torch.float32), ({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16", "avx2"}, torch.bfloat16)],
)
def test_cpu_without_bfloat16_instructions_stays_exact(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: flags)

    assert choose_dtype(CPU) == dtype
    assert choose_dtype(torch.device("cuda")) == torch.float16


def test_runtime_says_what_was_chosen() -> None:
    facts = Runtime(CPU, torch.float32).describe()

    assert facts == {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads()}


def _trained_a_little(network: nn.Module) -> nn.Module:
    """Return the network with normalisations that do something."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network.eval()


NETWORKS = {
    "mobilenet": lambda: SeptalDetector(DetectorConfig(backbone="mobilenet_v3_large", input_size_px=64)).backbone,
    "resnet50 pyramid": lambda: SeptalDetector(DetectorConfig(backbone="resnet50", input_size_px=64)).backbone,
    "embedder": lambda: DefectEmbedder(EmbedderConfig(input_size_px=64)),
    "views": lambda: ViewClassifier(ViewConfig(classes=4)).backbone,
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_the_answer_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    network = _trained_a_little(NETWORKS[name]())
    frames = torch.randn(2, 1, 64, 64)

    with torch.inference_mode():
        before = network(frames)
        fold_batch_norms(network)
        after = network(frames)

    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in network.modules())
    before, after = (list(x.values()) if isinstance(x, dict) else [x] for x in (before, after))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_bfloat16_embeddings_stay_close_and_centres_exact() -> None:
    torch.manual_seed(0)
    network = _trained_a_little(DefectEmbedder(EmbedderConfig(input_size_px=64)))
    crops = torch.randn(3, 1, 64, 64)
    with torch.inference_mode():
        exact = network(crops)

    low = prepare_network(network, Runtime(CPU, torch.bfloat16))

    with torch.inference_mode():
        cosines = (exact * low(crops.bfloat16())).sum(dim=1)
    assert low.centres.dtype == torch.float32
    assert cosines.min() > 0.999
