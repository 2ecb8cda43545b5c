"""The compiled step of a CPU says what torch's says, and a row nothing else in a larger batch."""

from __future__ import annotations

import pytest

pytest.importorskip("chatterbox")

import numba
import torch

from pipeline.engines.chatterbox import cpu_step
from pipeline.engines.chatterbox.backbone import Cache, Heads, Pass, T3Net
from pipeline.engines.chatterbox.int8 import quantised
from pipeline.engines.chatterbox.variants import CHATTERBOX, TURBO, Variant
from tests.pipeline.engines.chatterbox.t3_tools import half, limited, segment, speak, stock

pytestmark = pytest.mark.chatterbox

CPU = torch.device("cpu")
POSITIONS = 40


def net_of(variant: Variant, int8: bool = False) -> T3Net:
    net = T3Net(stock(variant), POSITIONS, CPU, torch.float32).eval()
    if int8:
        quantised(net.backbone)
    return net


def filled(net: T3Net, rows: int) -> Cache:
    """A cache in which something was said already."""
    cache = Cache(net.backbone.shape, rows, POSITIONS, CPU, torch.float32)
    chance = torch.Generator().manual_seed(1)
    for layer in cache.layers:
        layer[:] = torch.randn(layer.shape, generator=chance)
    return cache


def taken(
    net: T3Net, cache: Cache, x: torch.Tensor, positions: torch.Tensor, watched: Heads
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and attention of a compiled step."""
    logits, attention = torch.empty(len(x), net.head.out_features), torch.full((len(x), POSITIONS), 7.0)
    step = cpu_step.compiled(net, cache, watched)
    assert step is not None
    step(x.clone(), positions, logits, attention)
    return logits, attention


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("variant", [CHATTERBOX, TURBO], ids=["llama", "gpt2"])
@torch.inference_mode()
def test_compiled_step_equals_the_plain_one(variant: Variant, int8: bool, rows: int) -> None:
    net = net_of(variant, int8)
    mine, theirs = filled(net, rows), filled(net, rows)
    x = torch.randn(rows, net.backbone.shape.width, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(rows) * 7 % 33  # 0 among them: nothing is there yet but the input itself
    watched = ((1, 1), (0, 0))
    logits, attention = taken(net, mine, x, positions, watched)
    run = Pass(theirs, positions[:, None], POSITIONS, watched=watched)
    plain = net.head(net.backbone(x[:, None], run)[:, 0])
    assert torch.allclose(logits, plain, atol=1e-5)
    assert run.attention is not None
    assert torch.allclose(attention, run.attention[:, 0], atol=1e-6)
    for one, other in zip(mine.layers, theirs.layers, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("variant", [CHATTERBOX, TURBO], ids=["llama", "gpt2"])
@torch.inference_mode()
def test_a_row_is_the_same_in_any_batch(variant: Variant, int8: bool) -> None:
    net = net_of(variant, int8)
    x = torch.randn(7, net.backbone.shape.width)
    positions = torch.tensor([3, 30, 17, 0, 8, 39, 21])
    together, attention = taken(net, filled(net, 7), x, positions, ((1, 0),))
    for row in range(7):
        alone = Cache(net.backbone.shape, 1, POSITIONS, CPU, torch.float32)
        alone.put(0, filled(net, 7).take(row, POSITIONS))
        logits, seen = taken(net, alone, x[row : row + 1], positions[row : row + 1], ((1, 0),))
        assert torch.equal(logits[0], together[row])
        assert torch.equal(seen[0], attention[row])


@torch.inference_mode()
def test_what_is_not_a_number_stays_so() -> None:
    """The sampler has to see it: it ends the stream with a reason."""
    net = net_of(CHATTERBOX)
    x = torch.zeros(2, net.backbone.shape.width)
    x[1, 3] = float("nan")
    logits, _ = taken(net, filled(net, 2), x, torch.tensor([4, 4]), ())
    assert torch.isfinite(logits[0]).all()
    assert torch.isnan(logits[1]).all()


def test_torch_takes_the_steps_where_nothing_is_compiled_for() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert half(CHATTERBOX, limited(20), dtype=dtype)._decoder.cpu_step is None
    for convert in (None, quantised):
        assert half(CHATTERBOX, limited(20), convert=convert)._decoder.cpu_step is not None


def test_many_streams_at_once_say_what_each_says_alone() -> None:
    """More rows than are compiled for: torch's products, with up to eighteen rows here."""
    many = half(CHATTERBOX, limited(12), max_batch=9)
    texts = [f"Number {number}." for number in range(9)]
    alone = [b"".join(step.data for step in speak(many, segment(text))) for text in texts]
    made = dict.fromkeys(range(9), b"")
    for number, text in enumerate(texts):
        many.admit(number, segment(text))
    assert 2 * len(texts) > cpu_step.MOST_ROWS
    unfinished = set(made)
    while unfinished:
        for step in many.step():
            made[step.stream] += step.data  # type: ignore[union-attr]
            unfinished -= {step.stream} if step.final else set()  # type: ignore[union-attr]
    assert list(made.values()) == alone


def test_it_takes_as_many_threads_as_torch() -> None:
    """And leaves torch what it has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert cpu_step.compiled(net_of(CHATTERBOX), filled(net_of(CHATTERBOX), 1), ()) is not None
        assert (numba.get_num_threads(), torch.get_num_threads()) == (1, 1)
    finally:
        torch.set_num_threads(before)


def test_without_a_place_to_keep_it_it_is_compiled_anew() -> None:
    """numba keeps its work by the file of the source; this function has none."""

    def doubled(number: int) -> int:
        return 2 * number

    doubled.__code__ = doubled.__code__.replace(co_filename="<nowhere>")
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(doubled)
    assert cpu_step._jit()(doubled)(4) == 8
