# SPDX-License-Identifier: Apache-2.0
import torch

from echo_plugin.models.backbones import standardise


def test_frames_of_any_gain_and_offset_become_the_same():
    frames = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(standardise(frames * 0.3 - 1.0), standardise(frames), rtol=0, atol=1e-5)


def test_each_frame_has_mean_0_and_deviation_1():
    frames = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [1.0, 2, 3, 4]
    ).reshape(4, 1, 1, 1)

    standard = standardise(frames)

    torch.testing.assert_close(standard.mean(dim=(1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.std(dim=(1, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-5)


def test_an_empty_frame_stays_empty_and_finite():
    assert standardise(torch.full((1, 1, 8, 8), -1.2)).abs().max() < 1e-4


def test_the_precision_of_the_input_is_kept():
    assert standardise(torch.rand(1, 1, 8, 8).half()).dtype is torch.float16
