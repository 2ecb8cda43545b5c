"""Matrices as int8: near to what they were, a quarter of their size, and no row looks at another."""

from __future__ import annotations

import pytest

pytest.importorskip("chatterbox")

import torch
from torch import nn

from pipeline.engines.chatterbox.int8 import OUTPUTS_AT_ONCE, Int8Linear, quantised

pytestmark = pytest.mark.chatterbox


def linear(outputs: int, inputs: int, bias: bool = True) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(1)).mul_(torch.logspace(-3, 1, outputs)[:, None])
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [7, OUTPUTS_AT_ONCE, 2 * OUTPUTS_AT_ONCE + 3])
@torch.inference_mode()
def test_outputs_are_near_to_what_they_were_however_large_the_weights_are(outputs: int, bias: bool) -> None:
    plain = linear(outputs, 96, bias)
    coarse = Int8Linear(plain)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(2))
    wanted, got = plain(x), coarse(x)
    assert got.shape == wanted.shape
    spread = plain.weight.norm(dim=1)
    assert ((got - wanted).abs() < 0.03 * spread).all()
    off = (coarse.codes * coarse.scales[:, None] - plain.weight).abs()
    assert (off <= 0.51 * coarse.scales[:, None]).all()
    assert coarse.codes.abs().max() == 127
    assert coarse.codes.element_size() * 4 == plain.weight.element_size()


@torch.inference_mode()
def test_a_matrix_of_zeros_gives_the_bias() -> None:
    plain = linear(4, 8)
    plain.weight.zero_()
    assert torch.equal(Int8Linear(plain)(torch.randn(3, 8)), plain.bias.expand(3, -1))


@torch.inference_mode()
def test_what_is_not_a_number_is_not_hidden() -> None:
    plain = linear(4, 8)
    plain.weight[2, 3] = float("nan")
    got = Int8Linear(plain)(torch.ones(1, 8))[0]
    assert torch.isnan(got).tolist() == [False, False, True, False]


def test_every_linear_is_replaced_and_nothing_else() -> None:
    inner = nn.Sequential(nn.LayerNorm(8), linear(8, 8))
    made = quantised(nn.Sequential(linear(8, 8), nn.SiLU(), inner))
    kinds = [type(one).__name__ for one in made.modules()]
    assert kinds == ["Sequential", "Int8Linear", "SiLU", "Sequential", "LayerNorm", "Int8Linear"]
