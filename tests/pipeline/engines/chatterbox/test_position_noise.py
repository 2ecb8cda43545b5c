"""Noise by seed and position."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from pipeline.engines.chatterbox.position_noise import normals, seed_words, uniforms

pytestmark = pytest.mark.chatterbox


def noise(seed: int, first: int, count: int, channels: int = 80, purpose: int = 1) -> torch.Tensor:
    return normals(torch.tensor([seed_words(seed)]), torch.arange(first, first + count)[None], channels, purpose)[0]


def test_a_number_depends_on_seed_position_and_purpose_alone() -> None:
    long = noise(5, -100, 300)
    assert torch.equal(long[:, 40:90], noise(5, -60, 50))
    for other in (noise(6, -100, 300), noise(5 + 2**32, -100, 300), noise(5, -100, 300, purpose=2)):
        assert abs(torch.corrcoef(torch.stack([long.flatten(), other.flatten()]))[0, 1]) < 0.03
    together = normals(torch.tensor([seed_words(1), seed_words(5)]), torch.tensor([[9, 8], [7, -6]]), 80, 1)
    assert torch.equal(together[1, :, 1], noise(5, -6, 1)[:, 0])


@pytest.mark.parametrize("channels", [1, 80])
def test_it_is_normal_and_white(channels: int) -> None:
    made = noise(9, 0, 80_000 // channels, channels)
    flat = made.flatten()
    assert abs(flat.mean()) < 0.02
    assert abs(flat.std() - 1) < 0.02
    assert abs((flat**4).mean() - 3) < 0.15
    assert 3.5 < flat.abs().max() < 6
    for lag in (1, 2, 40):
        assert abs((made[:, lag:] * made[:, :-lag]).mean()) < 0.02
    if channels > 1:
        assert abs((made[1:] * made[:-1]).mean()) < 0.02
        assert abs((made[:40] * made[40:]).mean()) < 0.02


def test_hashing_gives_known_numbers() -> None:
    """The same in every version: checkpoints and resumed streams rely on it."""
    assert [round(one, 6) for one in uniforms(1234567, 3, 3)] == KNOWN_UNIFORMS
    torch.testing.assert_close(noise(77, 1000, 2, 2).flatten(), torch.tensor(KNOWN_NORMALS), atol=1e-5, rtol=0)


def test_every_seed_has_its_words() -> None:
    assert seed_words(0) == (0, 0)
    assert seed_words(2**32 + 3) == (3, 1)
    assert seed_words(-1) == (0xFFFFFFFF, 0xFFFFFFFF)


KNOWN_UNIFORMS = [0.162229, 0.67497, 0.13706]
KNOWN_NORMALS = [-0.703458, -0.074459, 1.082025, 0.366143]
