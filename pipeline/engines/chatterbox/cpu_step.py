"""A step of T3 on a CPU, compiled: one new input a row through all layers to its logits.

The same weights (float32, or `int8`) and cache as `backbone`, which does everything else. A small model loses more time
between torch's operations than in them, and for one or two rows torch's matrix products read weights at a third of
what memory gives. Here each row of a matrix is read once and meets every row of the batch, and a layer is one call.
What a row gets depends on nothing but that row: it is the same, bit for bit, in any batch of up to `MOST_ROWS`.

numba compiles it on the machine that runs it, the first time, and keeps the result on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba import prange
from torch import nn

from pipeline.engines.chatterbox.backbone import Block, Cache, Heads, T3Net
from pipeline.engines.chatterbox.int8 import Int8Linear

MOST_ROWS = 16
"""Beyond, each weight that is read is used so often that torch's matrix products are quicker."""

Array = npt.NDArray[np.float32]
Weights = Array | npt.NDArray[np.int8]
Linear = tuple[Weights, Array, Array]
"""(outputs, inputs), and of each output its scale and bias."""

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
def _dot(matrix: Weights, row: int, vector: Array) -> np.float32:
    total = np.float32(0.0)
    for at in range(len(vector)):
        total += np.float32(matrix[row, at]) * vector[at]
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
def _linear(x: Array, linear: Linear, out: Array) -> None:
    """(rows, inputs) into (rows, outputs)."""
    weight, scale, bias = linear
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            out[row, column] = _dot(weight, column, x[row]) * scale[column] + bias[column]


@_jit(parallel=True)
def _add_linear(x: Array, linear: Linear, out: Array) -> None:
    """The same, added to what is there."""
    weight, scale, bias = linear
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            out[row, column] += _dot(weight, column, x[row]) * scale[column] + bias[column]


@_jit(parallel=True)
def _gated_silu(x: Array, gate_up: Linear, out: Array) -> None:
    """silu(gate) * up; ``gate_up``: the rows of one matrix above those of the other."""
    weight, scale, bias = gate_up
    size = weight.shape[0] // 2
    for column in prange(size):
        for row in range(x.shape[0]):
            gate = _dot(weight, column, x[row]) * scale[column] + bias[column]
            up = _dot(weight, size + column, x[row]) * scale[size + column] + bias[size + column]
            out[row, column] = gate / (np.float32(1.0) + math.exp(-gate)) * up


@_jit(parallel=True)
def _gelu(x: Array, linear: Linear, out: Array) -> None:
    """GELU of a linear, by its approximation with tanh."""
    weight, scale, bias = linear
    for column in prange(weight.shape[0]):
        for row in range(x.shape[0]):
            y = _dot(weight, column, x[row]) * scale[column] + bias[column]
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
    qkv: Linear,
    out: Linear,
    second_norm: Array,
    gate_up: Linear,
    down: Linear,
    eps: float,
) -> Array:
    """``x``, (rows, width), in place; the attention of its heads."""
    rows, heads, size = x.shape[0], store.shape[2], store.shape[4]
    made = np.empty((rows, qkv[0].shape[0]), np.float32)
    _linear(_rms_norm(x, norm, eps), qkv, made)
    parts = made.reshape(rows, 3, heads, size)
    _turn(parts, positions, turns)
    heard = np.empty((rows, heads * size), np.float32)
    attention = _attend(parts, store, positions, heard)
    _add_linear(heard, out, x)
    inner = np.empty((rows, gate_up[0].shape[0] // 2), np.float32)
    _gated_silu(_rms_norm(x, second_norm, eps), gate_up, inner)
    _add_linear(inner, down, x)
    return attention


@_jit()
def _gpt2_layer(
    x: Array,
    positions: npt.NDArray[np.int64],
    store: Array,
    norm: Array,
    norm_bias: Array,
    qkv: Linear,
    out: Linear,
    second_norm: Array,
    second_norm_bias: Array,
    up: Linear,
    down: Linear,
    eps: float,
) -> Array:
    """As `_llama_layer`."""
    rows, heads, size = x.shape[0], store.shape[2], store.shape[4]
    made = np.empty((rows, qkv[0].shape[0]), np.float32)
    _linear(_layer_norm(x, norm, norm_bias, eps), qkv, made)
    heard = np.empty((rows, heads * size), np.float32)
    attention = _attend(made.reshape(rows, 3, heads, size), store, positions, heard)
    _add_linear(heard, out, x)
    inner = np.empty((rows, up[0].shape[0]), np.float32)
    _gelu(_layer_norm(x, second_norm, second_norm_bias, eps), up, inner)
    _add_linear(inner, down, x)
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
        self._head = _matrix(net.head)
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
        _linear(normed, self._head, _array(logits))


def compiled(net: T3Net, cache: Cache, watched: Heads) -> CpuStep | None:
    """None where torch has to take the steps: not on a CPU, or in half precision."""
    store = cache.layers[0]
    if store.device.type != "cpu" or store.dtype != torch.float32:
        return None
    return CpuStep(net, cache, watched)


def _array(tensor: torch.Tensor) -> Any:
    """The same memory, as compiled code wants it: what lies otherwise would be compiled for anew, and be slow."""
    if not tensor.is_contiguous():
        raise ValueError(f"not contiguous: {tuple(tensor.shape)}, {tensor.stride()}")
    return tensor.numpy()


def _matrix(linear: nn.Linear | Int8Linear) -> Linear:
    bias = np.zeros(linear.out_features, np.float32) if linear.bias is None else _array(linear.bias)
    if isinstance(linear, Int8Linear):
        return _array(linear.codes), _array(linear.scales), bias
    return _array(linear.weight), np.ones(linear.out_features, np.float32), bias


def _llama(block: Block) -> tuple[Any, ...]:
    """From ``norm`` on what `_llama_layer` takes."""
    norms = [(_array(norm.weight),) for norm in (block.norm, block.second_norm)]
    return _parts(block, norms, block.feed_forward.gate_up)


def _gpt2(block: Block) -> tuple[Any, ...]:
    """From ``norm`` on what `_gpt2_layer` takes."""
    norms = [(_array(norm.weight), _array(norm.bias)) for norm in (block.norm, block.second_norm)]
    return _parts(block, norms, block.feed_forward.up)


def _parts(block: Block, norms: Sequence[tuple[Array, ...]], up: nn.Linear | Int8Linear) -> tuple[Any, ...]:
    attention, down = block.attention, block.feed_forward.down
    first, second = norms
    return (*first, _matrix(attention.qkv), _matrix(attention.out), *second, _matrix(up), _matrix(down), block.norm.eps)
