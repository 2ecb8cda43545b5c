"""T3's matrices as int8, each output with a scale of its own; what comes in and what comes out stays as it is.

A step of decoding reads every weight for a row or two, so that memory is what it waits for: a quarter of the bytes, up
to four times the steps (`cpu_step`). Nothing of what comes in is rounded to int8: what a row gets depends on no other
row, and a prefill and steps over the same tokens leave the same keys and values but for float32's rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

OUTPUTS_AT_ONCE = 256
"""So many rows of a matrix are made floats of at a time: they stay in the processor's cache till they are used."""


class Int8Linear(nn.Module):
    """In place of an `nn.Linear`. ``codes``: int8 (outputs, inputs); ``scales``: float32 (outputs,)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.out_features = linear.out_features
        self.codes = nn.Parameter((weight / scales[:, None]).round().to(torch.int8), requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [functional.linear(x, codes.to(x.dtype)) for codes in self.codes.split(OUTPUTS_AT_ONCE)]
        made = torch.cat(parts, dim=-1).mul_(self.scales)
        return made if self.bias is None else made.add_(self.bias)


def quantised(module: nn.Module) -> nn.Module:
    """The module, with every `nn.Linear` in it replaced."""
    for name, child in module.named_children():
        setattr(module, name, Int8Linear(child) if isinstance(child, nn.Linear) else quantised(child))
    return module
