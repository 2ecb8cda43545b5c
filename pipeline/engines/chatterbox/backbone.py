"""T3's transformer with a KV cache that never moves: the stock weights, blocks of our own.

A Llama (RMS norm, rotary positions, gated SiLU) or a GPT-2 (layer norm, learned positions, tanh GELU), told apart by
the stock module. Every matrix is an `nn.Linear`, or an `int8.Int8Linear` in its place; query, key and value are one of
them, gate and up another.

The cache has a fixed number of *rows* (sequences) and *positions*. A pass (`Pass`) says which rows it extends and at
which positions; each of its inputs is written there and sees everything up to itself. One pass with one input a row is
a step of decoding, one with many is a prefill. Nothing in it depends on values on the device, so that a step can be
captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from chatterbox.models.t3 import T3
from torch import nn
from torch.nn import functional

Heads = tuple[tuple[int, int], ...]
"""(layer, head) pairs."""

Turn = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Of a backbone."""

    layers: int
    heads: int
    head_dim: int
    width: int


def _zeros(size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On the CPU it is taken only when it is written to: places for many streams cost nothing by themselves."""
    if device.type != "cpu":
        return torch.zeros(size, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, np.uint8)).view(dtype).view(size)


class Cache:
    """``layers[i]``: (2, rows, heads, positions, head_dim), keys and values, zero where never written."""

    def __init__(self, shape: Shape, rows: int, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        size = (2, rows, shape.heads, positions, shape.head_dim)
        self.rows, self.positions = rows, positions
        self.layers = [_zeros(size, device, dtype) for _ in range(shape.layers)]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of a row over those of another."""
        for layer in self.layers:
            layer[:, target, :, :positions] = layer[:, source, :, :positions]

    def swap(self, one_row: int, other_row: int, positions: int) -> None:
        """Exchange the first positions of two rows."""
        for layer in self.layers:
            kept = layer[:, one_row, :, :positions].clone()
            layer[:, one_row, :, :positions] = layer[:, other_row, :, :positions]
            layer[:, other_row, :, :positions] = kept

    def take(self, row: int, positions: int) -> torch.Tensor:
        """A copy of the first positions of a row: (layers, 2, heads, positions, head_dim)."""
        return torch.stack([layer[:, row, :, :positions] for layer in self.layers])

    def put(self, row: int, taken: torch.Tensor) -> None:
        """Write back what `take` gave, into any row."""
        for layer, part in zip(self.layers, taken, strict=True):
            layer[:, row, :, : taken.shape[3]] = part


@dataclass
class Pass:
    """One run through the layers.

    ``positions``: int64 (rows, inputs). ``rows``: int64 (rows,), or None for the first of the cache, which are then
    read where they lie instead of being gathered. ``length``: how much of the cache is looked at, beyond all
    positions. ``watched``: whose attention is added up in ``attention``, float32 (rows, inputs, length).
    """

    cache: Cache
    positions: torch.Tensor
    length: int
    rows: torch.Tensor | None = None
    watched: Heads = ()
    attention: torch.Tensor | None = None
    mask: torch.Tensor = field(init=False)
    into: torch.Tensor = field(init=False)

    def prepare(self, masks: torch.Tensor) -> None:
        """``masks``: row p is 0 up to position p and −∞ beyond, in the type of the queries."""
        self.mask = masks[self.positions][:, None, :, : self.length]
        first = torch.arange(self.positions.shape[0], device=self.positions.device)
        self.into = (first if self.rows is None else self.rows)[:, None]

    def extend(self, layer: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values, ``new``: (rows, inputs, 2, heads, head_dim); all that is to be looked at."""
        store = self.cache.layers[layer]
        store[:, self.into, :, self.positions] = new
        if self.rows is None:
            seen = store[:, : new.shape[0], :, : self.length]
        else:
            seen = store[:, :, :, : self.length].index_select(1, self.rows)
        return seen[0], seen[1]

    def watch(self, query: torch.Tensor, keys: torch.Tensor, heads: Sequence[int]) -> None:
        """Add up the attention of some heads of a layer."""
        for head in heads:
            scores = query[:, head].float() @ keys[:, head].float().transpose(1, 2) * query.shape[-1] ** -0.5
            seen = torch.softmax(scores + self.mask[:, 0].float(), dim=-1)
            self.attention = seen if self.attention is None else self.attention + seen


class Attention(nn.Module):
    """Of either backbone. ``turn``: None where positions are learned, else cosines and sines, (rows, inputs, 1, 1,
    head_dim) each, the first half of the sines negated."""

    def __init__(self, heads: int, qkv: nn.Linear, out: nn.Linear) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, qkv, out
        self.half = qkv.out_features // (3 * heads) // 2

    def forward(self, x: torch.Tensor, run: Pass, layer: int, turn: Turn | None) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))
        if turn is not None:
            query_key = qkv[:, :, :2]
            other_half = query_key.roll(self.half, -1)
            query_key.mul_(turn[0]).addcmul_(other_half, turn[1])
        query = qkv[:, :, 0].transpose(1, 2)
        keys, values = run.extend(layer, qkv[:, :, 1:])
        if watched := [head for at, head in run.watched if at == layer]:
            run.watch(query, keys, watched)
        heard = functional.scaled_dot_product_attention(query, keys, values, attn_mask=run.mask)
        return self.out(heard.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    def __init__(self, gate_up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)


class FeedForward(nn.Module):
    def __init__(self, up: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.gelu(self.up(x), approximate="tanh"))


class RMSNorm(nn.Module):
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = _parameter(weight), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class LayerNorm(nn.Module):
    def __init__(self, stock: nn.LayerNorm, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.eps = _parameter(stock.weight.to(device, dtype)), stock.eps
        self.bias = _parameter(stock.bias.to(device, dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class Block(nn.Module):
    def __init__(self, norm: nn.Module, attention: Attention, second_norm: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention = norm, attention
        self.second_norm, self.feed_forward = second_norm, feed_forward

    def forward(self, x: torch.Tensor, run: Pass, layer: int, turn: Turn | None) -> torch.Tensor:
        x = x + self.attention(self.norm(x), run, layer, turn)
        return x + self.feed_forward(self.second_norm(x))


class Backbone(nn.Module):
    """The blocks, with what turns positions into something they can hear."""

    def __init__(self, t3: T3, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        stock, config = t3.tfmr, t3.cfg
        self.rotary = not t3.is_gpt
        if self.rotary:
            if config.num_key_value_heads != config.num_attention_heads:
                raise ValueError("a Llama with grouped keys is no T3")
            blocks = [_llama_block(one, config.num_attention_heads, device, dtype) for one in stock.layers]
            self.norm: nn.Module = _rms_norm(stock.norm, device, dtype)
            rope = stock.rotary_emb
            turns = torch.arange(positions, dtype=torch.float32)[:, None] * rope.inv_freq.detach().float().cpu()
            cos, sin = turns.cos() * float(rope.attention_scaling), turns.sin() * float(rope.attention_scaling)
            table = torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)
            self.register_buffer("turns", table[:, :, None].to(device, dtype), persistent=False)
        else:
            blocks = [_gpt2_block(one, config.n_head, device, dtype) for one in stock.h]
            self.norm = LayerNorm(stock.ln_f, device, dtype)
            self.place = _embedding(stock.wpe.weight, device, dtype)
        self.blocks = nn.ModuleList(blocks)
        beyond = torch.full((positions, positions), float("-inf"), dtype=dtype, device=device).triu(1)
        self.register_buffer("masks", beyond, persistent=False)
        heads = config.num_attention_heads
        width = config.hidden_size
        head_dim = getattr(config, "head_dim", None) or width // heads
        self.shape = Shape(len(blocks), heads, head_dim, width)

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """(rows, inputs, width) to the same, extending the cache."""
        run.prepare(self.masks)
        turn = None
        if self.rotary:
            turns = self.turns[run.positions]
            turn = turns[:, :, :1], turns[:, :, 1:]
        else:
            x = x + self.place(run.positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, run, layer, turn)
        return self.norm(x)


class T3Net(nn.Module):
    """Backbone, embeddings and head of a stock T3, on a device in a type."""

    def __init__(self, t3: T3, positions: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = Backbone(t3, positions, device, dtype)
        self.text_emb = _embedding(t3.text_emb.weight, device, dtype)
        self.speech_emb = _embedding(t3.speech_emb.weight, device, dtype)
        learned = t3.hp.input_pos_emb == "learned"
        self.text_pos = _embedding(t3.text_pos_emb.emb.weight, device, dtype) if learned else None
        self.speech_pos = _embedding(t3.speech_pos_emb.emb.weight, device, dtype) if learned else None
        bias = t3.speech_head.bias
        self.head = _linear(t3.speech_head.weight, None if bias is None else bias, device, dtype)

    def text(self, ids: torch.Tensor, conditional: bool) -> torch.Tensor:
        """(length,) ids to (length, width); unconditional: positions with nothing said in them."""
        x = self.text_emb(ids) if conditional else torch.zeros_like(self.text_emb(ids))
        return x if self.text_pos is None else x + self.text_pos(torch.arange(len(ids), device=ids.device))

    def speech(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Ids and their places (start of speech: 0) of the same shape to vectors."""
        x = self.speech_emb(ids)
        return x if self.speech_pos is None else x + self.speech_pos(places)


def _llama_block(stock: nn.Module, heads: int, device: torch.device, dtype: torch.dtype) -> Block:
    attention, mlp = stock.self_attn, stock.mlp
    qkv = _fused((attention.q_proj, attention.k_proj, attention.v_proj), device, dtype)
    return Block(
        _rms_norm(stock.input_layernorm, device, dtype),
        Attention(heads, qkv, _fused((attention.o_proj,), device, dtype)),
        _rms_norm(stock.post_attention_layernorm, device, dtype),
        GatedFeedForward(_fused((mlp.gate_proj, mlp.up_proj), device, dtype), _fused((mlp.down_proj,), device, dtype)),
    )


def _gpt2_block(stock: nn.Module, heads: int, device: torch.device, dtype: torch.dtype) -> Block:
    attention, mlp = stock.attn, stock.mlp
    return Block(
        LayerNorm(stock.ln_1, device, dtype),
        Attention(heads, _turned(attention.c_attn, device, dtype), _turned(attention.c_proj, device, dtype)),
        LayerNorm(stock.ln_2, device, dtype),
        FeedForward(_turned(mlp.c_fc, device, dtype), _turned(mlp.c_proj, device, dtype)),
    )


def _rms_norm(stock: nn.Module, device: torch.device, dtype: torch.dtype) -> RMSNorm:
    return RMSNorm(stock.weight.to(device, dtype), stock.variance_epsilon)


def _fused(parts: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """Linears of one input as one."""
    weights = [one.weight.detach().to(device, dtype) for one in parts]
    return _linear(weights[0] if len(weights) == 1 else torch.cat(weights), None, device, dtype)


def _turned(stock: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """GPT-2's ``Conv1D`` has its matrix the other way round."""
    return _linear(stock.weight.detach().t().contiguous(), stock.bias, device, dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = _parameter(weight.to(device, dtype).contiguous())
    if bias is not None:
        made.bias = _parameter(bias.detach().to(device, dtype))
    return made


def _embedding(weight: torch.Tensor, device: torch.device, dtype: torch.dtype) -> nn.Embedding:
    made = nn.Embedding(*weight.shape, device="meta")
    made.weight = _parameter(weight.detach().to(device, dtype))
    return made


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)
