# SPDX-License-Identifier: Apache-2.0
"""How well a masked autoencoder draws what it does not see: while it is trained, and on test patients."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_plugin.metrics import Cohort
from echo_plugin.model_card import Metric
from echo_plugin.models.masked_autoencoder import Drawn, MaskedAutoencoder
from echo_plugin.preprocess import normalise
from echo_plugin.training.loop import lower_precision
from echo_plugin.training.mae_frames import UnlabelledFrames

MOST_FRAMES = 2048
BATCH_SIZE = 64


@torch.no_grad()
def errors_of_frames(
    model: MaskedAutoencoder, frames: UnlabelledFrames, items: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the (N,) errors of the hidden patches of the frames ``items``, and those of the mean of the seen patches.

    ``noise`` : (N, L), chooses what is hidden.
    """
    device = model.mask_token.device
    model.eval()
    errors, plain = [torch.zeros(0)], [torch.zeros(0)]
    for chosen, drawn_noise in zip(torch.split(items, BATCH_SIZE), torch.split(noise, BATCH_SIZE), strict=True):
        inputs = normalise(frames.pixels[chosen].to(device))
        with lower_precision(device):
            drawn = model(inputs, drawn_noise.to(device))
        errors.append(model.errors(inputs, drawn).cpu())
        plain.append(model.errors(inputs, mean_of_seen(model.targets(inputs), drawn.mask)).cpu())
    return torch.cat(errors), torch.cat(plain)


def mean_of_seen(targets: Tensor, mask: Tensor) -> Drawn:
    """Return every patch as the mean of those of its frame that are seen: ``targets`` (N, L, V), ``mask`` (N, L)."""
    seen = (1 - mask)[:, :, None]
    mean = (targets * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)
    return Drawn(mean.expand_as(targets), mask)


def measure_on_test(
    model: MaskedAutoencoder, frames: UnlabelledFrames, items: Tensor, patients: list[str], *, words: str, seed: int
) -> dict[str, Metric]:
    """Return the error on frames of test patients, by patient, beside that of the mean patch; {}: there are none.

    ``patients`` : (N,) of the frames ``items``.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(items), generator=generator)[:MOST_FRAMES]
    if not len(chosen):
        return {}
    noise = torch.rand(len(chosen), model.decoder_pos_embed.shape[1] - 1, generator=generator)
    errors, plain = errors_of_frames(model, frames, items[chosen], noise)
    cohort = Cohort(tuple(patients[place] for place in chosen.tolist()), words, seed)
    baseline = cohort.mean(plain.double().numpy()).value
    return {"reconstruction_error": cohort.mean(errors.double().numpy(), baseline)}
