"""A step of T3 on a CPU, compiled: one new input a row through all layers to its logits.

The same weights and cache as `backbone`, which does everything else. A small model loses more time between torch's
operations than in them, and for one or two rows torch's matrix products read weights at a third of what memory gives.
Here each row of a matrix is read once and meets every row of the batch, and a layer is one call. What a row gets
depends on nothing but that row: it is the same, bit for bit, in any batch of up to `MOST_ROWS`.

numba compiles it on the machine that runs it, the first time, and keeps the result on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import prange
from torch import nn

from pipeline.engines.chatterbox.backbone import Block, Cache, Heads, T3Net

MOST_ROWS = 16
"""Beyond, each weight that is read is used so often that torch's matrix products are quicker."""

Array = npt.NDArray[np.float32]

# Sums may be reordered, or they could not be vectorised; what is not a number stays so: the sampler looks for it.
_MATHS = {"reassoc", "contract", "nsz"}


def _jit(parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {"parallel": parallel, "fastmath": _MATHS, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside the source nor in the user's cache may anything be written
            return numba.njit(**options)(function)

    return wrapped


@_jit()
def _dot(matrix: Array, row: int, vector: Array) -> np.float32:
    total = np.float32(0.0)
    for at in range(len(vector)):
        total += matrix[row, at] * vector[at]
    return total


@_jit()
def _add_up(matrix: Array, shares: Array, rows: int, out: Array) -> None:
    """The sum of a matrix's first rows, each times its share; four at a time, as ``out`` is read and written each."""
    out[:] = 0.0
    fours = rows // 4 * 4
    for row in range(0, fours, 4):
        for at in range(len(out)):
            out[at] += (
                shares[row] * matrix[row, at]
                + shares[row + 1] * matrix[row + 1, at]
                + shares[row + 2] * matrix[row + 2, at]
                + shares[row + 3] * matrix[row + 3, at]
            )
    for row in range(fours, rows):
        for at in range(len(out)):
            out[at] += shares[row] * matrix[row, at]


@_jit(parallel=True)
def _linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """(rows, inputs) by (outputs, inputs) into (rows, outputs)."""
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            out[row, column] = _dot(weight, column, x[row]) + bias[column]


@_jit(parallel=True)
def _add_linear(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """The same, added to what is there."""
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            out[row, column] += _dot(weight, column, x[row]) + bias[column]


@_jit(parallel=True)
def _gated_silu(x: Array, gate_up: Array, out: Array) -> None:
    """silu(gate) * up; ``gate_up``: the rows of one matrix above those of the other."""
    size = gate_up.shape[0] // 2
    for column in prange(size):
        for row in range(x.shape[0]):
            gate = _dot(gate_up, column, x[row])
            up = _dot(gate_up, size + column, x[row])
            out[row, column] = gate / (np.float32(1.0) + math.exp(-gate)) * up


@_jit(parallel=True)
def _gelu(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """GELU of a linear, by its approximation with tanh."""
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            y = _dot(weight, column, x[row]) + bias[column]
            inner = np.float32(0.7978845608028654) * (y + np.float32(0.044715) * y * y * y)
            out[row, column] = np.float32(0.5) * y * (np.float32(1.0) + math.tanh(inner))


@_jit(parallel=True)
def _attend(qkv: Array, store: Array, positions: npt.NDArray[np.int64], heard: Array) -> Array:
    """Write the new keys and values, (rows, 3, heads, head_dim) with the queries, into the cache of a layer; what each
    query hears of everything up to itself into ``heard``; each head's attention, (rows, heads, positions), only written
    as far as the row's position."""
    rows, _, heads, size = qkv.shape
    scale = np.float32(1.0 / math.sqrt(size))
    attention = np.empty((rows, heads, positions.max() + 1), np.float32)
    for pair in prange(rows * heads):
        row, head = pair // heads, pair % heads
        keys, values, query, shares = store[0, row, head], store[1, row, head], qkv[row, 0, head], attention[row, head]
        length = positions[row] + 1
        keys[length - 1], values[length - 1] = qkv[row, 1, head], qkv[row, 2, head]
        largest = np.float32(-np.inf)
        for position in range(length):
            shares[position] = _dot(keys, position, query) * scale
            largest = max(largest, shares[position])
        total = np.float32(0.0)
        for position in range(length):
            shares[position] = math.exp(shares[position] - largest)
            total += shares[position]
        for position in range(length):
            shares[position] /= total
        _add_up(values, shares, length, heard[row, head * size : (head + 1) * size])
    return attention


@_jit()
def _turn(qkv: Array, positions: npt.NDArray[np.int64], turns: Array) -> None:
    """Rotary positions, of queries and keys in place. ``turns``: (positions, 2, head_dim), see `backbone.Attention`."""
    half = qkv.shape[3] // 2
    for row in range(qkv.shape[0]):
        cosines, sines = turns[positions[row], 0], turns[positions[row], 1]
        for part in range(2):
            for head in range(qkv.shape[2]):
                for at in range(half):
                    one, other = qkv[row, part, head, at], qkv[row, part, head, half + at]
                    qkv[row, part, head, at] = one * cosines[at] + other * sines[at]
                    qkv[row, part, head, half + at] = other * cosines[half + at] + one * sines[half + at]


@_jit()
def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    normed = np.empty_like(x)
    width = x.shape[1]
    for row in range(x.shape[0]):
        scale = np.float32(1.0 / math.sqrt(_dot(x, row, x[row]) / np.float32(width) + np.float32(eps)))
        for at in range(width):
            normed[row, at] = x[row, at] * scale * weight[at]
    return normed


@_jit()
def _layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    normed = np.empty_like(x)
    width = np.float32(x.shape[1])
    for row in range(x.shape[0]):
        total, squares = np.float32(0.0), np.float32(0.0)
        for at in range(x.shape[1]):
            total += x[row, at]
        mean = total / width
        for at in range(x.shape[1]):
            squares += (x[row, at] - mean) * (x[row, at] - mean)
        scale = np.float32(1.0 / math.sqrt(squares / width + np.float32(eps)))
        for at in range(x.shape[1]):
            normed[row, at] = (x[row, at] - mean) * scale * weight[at] + bias[at]
    return normed


@_jit()
def _llama_layer(
    x: Array,
    positions: npt.NDArray[np.int64],
    store: Array,
    turns: Array,
    norm: Array,
    qkv: Array,
    out: Array,
    second_norm: Array,
    gate_up: Array,
    down: Array,
    nothing: Array,
    eps: float,
) -> Array:
    """``x``, (rows, width), in place; the attention of its heads. ``nothing``: zeros for the biases that are none."""
    rows, heads, size = x.shape[0], store.shape[2], store.shape[4]
    made = np.empty((rows, qkv.shape[0]), np.float32)
    _linear(_rms_norm(x, norm, eps), qkv, nothing, made)
    parts = made.reshape(rows, 3, heads, size)
    _turn(parts, positions, turns)
    heard = np.empty((rows, heads * size), np.float32)
    attention = _attend(parts, store, positions, heard)
    _add_linear(heard, out, nothing, x)
    inner = np.empty((rows, gate_up.shape[0] // 2), np.float32)
    _gated_silu(_rms_norm(x, second_norm, eps), gate_up, inner)
    _add_linear(inner, down, nothing, x)
    return attention


@_jit()
def _gpt2_layer(
    x: Array,
    positions: npt.NDArray[np.int64],
    store: Array,
    norm: Array,
    norm_bias: Array,
    qkv: Array,
    qkv_bias: Array,
    out: Array,
    out_bias: Array,
    second_norm: Array,
    second_norm_bias: Array,
    up: Array,
    up_bias: Array,
    down: Array,
    down_bias: Array,
    eps: float,
) -> Array:
    """As `_llama_layer`."""
    rows, heads, size = x.shape[0], store.shape[2], store.shape[4]
    made = np.empty((rows, qkv.shape[0]), np.float32)
    _linear(_layer_norm(x, norm, norm_bias, eps), qkv, qkv_bias, made)
    heard = np.empty((rows, heads * size), np.float32)
    attention = _attend(made.reshape(rows, 3, heads, size), store, positions, heard)
    _add_linear(heard, out, out_bias, x)
    inner = np.empty((rows, up.shape[0]), np.float32)
    _gelu(_layer_norm(x, second_norm, second_norm_bias, eps), up, up_bias, inner)
    _add_linear(inner, down, down_bias, x)
    return attention


@_jit()
def _watch(attention: Array, positions: npt.NDArray[np.int64], head: int, watched: Array) -> None:
    """Add one head's attention to ``watched``, (rows, columns)."""
    for row in range(attention.shape[0]):
        for position in range(min(positions[row] + 1, watched.shape[1])):
            watched[row, position] += attention[row, head, position]


class CpuStep:
    """See above. All calls belong to one thread; they use as many as torch may."""

    def __init__(self, net: T3Net, cache: Cache, watched: Heads) -> None:
        backbone = self._backbone = net.backbone
        self._watched = watched
        self._head, self._head_bias = _array(net.head.weight), _bias(net.head)
        stores = [_array(layer) for layer in cache.layers]
        if backbone.rotary:
            turns = _array(backbone.turns[:, :, 0])
            self._layers = [
                (store, turns, *_llama(block)) for block, store in zip(backbone.blocks, stores, strict=True)
            ]
        else:
            self._layers = [(store, *_gpt2(block)) for block, store in zip(backbone.blocks, stores, strict=True)]
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(threads)  # they share OpenMP, in which numba has set the number of processors

    def __call__(
        self, x: torch.Tensor, positions: torch.Tensor, logits: torch.Tensor, attention: torch.Tensor | None
    ) -> None:
        """``x``: the embedded inputs of the cache's first rows, (rows, width), which are lost; ``positions``: int64
        (rows,). Extends the cache and writes ``logits``, (rows, vocabulary), and, added up over the watched heads,
        ``attention``, (rows, columns). All float32."""
        backbone = self._backbone
        vectors, places = _array(x if backbone.rotary else x + backbone.place(positions)), positions.numpy()
        seen = None if attention is None else _array(attention.zero_())
        layer_of = _llama_layer if backbone.rotary else _gpt2_layer
        for number, layer in enumerate(self._layers):
            heads = layer_of(vectors, places, *layer)
            if seen is not None:
                for head in (head for at, head in self._watched if at == number):
                    _watch(heads, places, head, seen)
        norm = backbone.norm
        if backbone.rotary:
            normed = _rms_norm(vectors, _array(norm.weight), norm.eps)
        else:
            normed = _layer_norm(vectors, _array(norm.weight), _array(norm.bias), norm.eps)
        _linear(normed, self._head, self._head_bias, _array(logits))


def compiled(net: T3Net, cache: Cache, watched: Heads) -> CpuStep | None:
    """None where torch has to take the steps: not on a CPU, not in float32, or quantised."""
    plain = isinstance(net.backbone.blocks[0].attention.qkv, nn.Linear)
    store = cache.layers[0]
    if store.device.type != "cpu" or store.dtype != torch.float32 or not plain:
        return None
    return CpuStep(net, cache, watched)


def _array(tensor: torch.Tensor) -> Array:
    """The same memory, as compiled code wants it: what lies otherwise would be compiled for anew, and be slow."""
    if not tensor.is_contiguous():
        raise ValueError(f"not contiguous: {tuple(tensor.shape)}, {tensor.stride()}")
    return tensor.numpy()


def _bias(linear: nn.Linear) -> Array:
    return np.zeros(linear.out_features, np.float32) if linear.bias is None else _array(linear.bias)


def _llama(block: Block) -> tuple[Any, ...]:
    """From ``norm`` on what `_llama_layer` takes."""
    attention, feed_forward = block.attention, block.feed_forward
    parts = (block.norm, attention.qkv, attention.out, block.second_norm, feed_forward.gate_up, feed_forward.down)
    weights = [_array(part.weight) for part in parts]
    nothing = np.zeros(max(map(len, weights)), np.float32)
    return (*weights, nothing, block.norm.eps)


def _gpt2(block: Block) -> tuple[Any, ...]:
    """From ``norm`` on what `_gpt2_layer` takes."""
    attention, feed_forward = block.attention, block.feed_forward
    parts = (block.norm, attention.qkv, attention.out, block.second_norm, feed_forward.up, feed_forward.down)
    return (*(_array(tensor) for part in parts for tensor in (part.weight, part.bias)), block.norm.eps)
