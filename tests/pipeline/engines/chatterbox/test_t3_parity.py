"""Our decode loop says what the stock loops say, token for token, with the same weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("chatterbox")

import torch
from chatterbox.models.t3 import T3
from chatterbox.models.t3.inference.alignment_stream_analyzer import AlignmentStreamAnalyzer

from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.attention import ALIGNED, Followed, Frame, decide, follow, replay
from pipeline.engines.chatterbox.modules import build_t3
from pipeline.engines.chatterbox.tiny import tiny_t3, tiny_t3_sizes
from pipeline.engines.chatterbox.variants import (
    CHATTERBOX,
    MULTILINGUAL_V2,
    MULTILINGUAL_V3,
    SILENCE_TOKEN,
    STOP_SPEECH,
    TURBO,
    Variant,
)
from tests.pipeline.engines.chatterbox.t3_tools import (
    TEXT,
    half,
    ids_of,
    limited,
    segment,
    speak,
    stock,
    stock_tokens,
    trimmed,
)

pytestmark = pytest.mark.chatterbox

LENGTH = 300


def ours(variant: Variant, text: str, tokens: int, *, t3: T3 | None = None, **settings: Any) -> list[int]:
    """What our loop makes greedily: every id, without the silence that Turbo ends with."""
    kept = replace(variant, end_silence_tokens=0)
    tuning = limited(tokens - variant.turbo)
    model = half(kept, tuning, max_batch=1, t3=t3 or stock(variant))
    return ids_of(speak(model, segment(text, **{"temperature": 0.0} | settings)))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.3])
def test_greedy_english_equals_stock(weight: float) -> None:
    settings: dict[str, Any] = {"cfg_weight": weight, "repetition_penalty": 1.2, "top_p": 0.9}
    expected = stock_tokens(CHATTERBOX, TEXT, LENGTH, temperature=1.0, **settings)
    assert len(expected) == LENGTH
    assert ours(CHATTERBOX, TEXT, LENGTH, **settings) == trimmed(expected)


def test_greedy_turbo_equals_stock() -> None:
    expected = stock_tokens(TURBO, TEXT, LENGTH, top_k=50, top_p=0.8, repetition_penalty=1.3)
    assert len(expected) == LENGTH
    assert ours(TURBO, TEXT, LENGTH, top_k=50, top_p=0.8, repetition_penalty=1.3) == trimmed(expected)


def test_greedy_multilingual_v3_equals_stock() -> None:
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 1.2}
    expected = stock_tokens(MULTILINGUAL_V3, TEXT, LENGTH, temperature=1.0, **settings)
    assert len(expected) == LENGTH
    assert ours(MULTILINGUAL_V3, TEXT, LENGTH, **settings) == trimmed(expected)


def test_greedy_multilingual_v2_equals_stock_with_its_analyzer() -> None:
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 2.0}
    expected = stock_tokens(MULTILINGUAL_V2, TEXT, LENGTH, temperature=1.0, **settings)
    assert len(expected) == LENGTH
    assert ours(MULTILINGUAL_V2, TEXT, LENGTH, **settings) == trimmed(expected)


def test_greedy_english_equals_stock_with_another_exaggeration() -> None:
    settings: dict[str, Any] = {"exaggeration": 1.5, "cfg_weight": 0.5, "repetition_penalty": 1.2}
    expected = stock_tokens(CHATTERBOX, TEXT, 40, temperature=1.0, **settings)
    assert ours(CHATTERBOX, TEXT, 40, **settings) == trimmed(expected)


# --------------------------------------------------------------------------- the analyzer


def eager_to_stop(t3: T3, share: float) -> T3:
    """The same with a head that would stop at once."""
    with torch.no_grad():
        head = t3.speech_head.weight
        head[STOP_SPEECH] = head.mean(dim=0) + share * torch.randn(
            head.shape[1], generator=torch.Generator().manual_seed(1)
        )
    return t3


def sharp(t3: T3, factor: float) -> T3:
    """The same with heads that look at one place at a time."""
    with torch.no_grad():
        for layer, _ in ALIGNED:
            t3.tfmr.layers[layer].self_attn.q_proj.weight.mul_(factor)
    return t3


def dull(t3: T3, difference: float) -> T3:
    """The same, to which all tokens are much alike, wherever they are."""
    with torch.no_grad():
        t3.speech_pos_emb.emb.weight.zero_()
        weight = t3.speech_emb.weight
        weight.copy_(weight[:1] + difference * (weight - weight[:1]))
    return t3


def attentive(seed: int) -> T3:
    """A v2 with little before its text, so that much of its attention is on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_t3(MULTILINGUAL_V2, replace(tiny_t3_sizes(MULTILINGUAL_V2), perceiver_queries=1))


def test_token_said_twice_forces_the_end_as_in_stock() -> None:
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 1.0}
    lengths = []
    for difference in (0.1, 0.3, 0.5):
        t3 = dull(attentive(10), difference)
        expected = stock_tokens(MULTILINGUAL_V2, "Repeat that.", 60, t3=t3, temperature=1.0, **settings)
        assert ours(MULTILINGUAL_V2, "Repeat that.", 60, t3=t3, **settings) == trimmed(expected)
        lengths.append(len(expected))
    assert min(lengths) < 60, "no weights made the analyzer act"


@pytest.mark.parametrize("seed", [0, 2])
def test_end_is_barred_while_text_is_left_as_in_stock(seed: int) -> None:
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 1.2}
    t3 = eager_to_stop(sharp(tiny_t3(MULTILINGUAL_V2, seed=20 + seed), 4.0), 1.0)
    text = "Do not stop before the end."
    unwatched = stock_tokens(MULTILINGUAL_V3, text, 80, t3=t3, temperature=1.0, **settings)
    expected = stock_tokens(MULTILINGUAL_V2, text, 80, t3=t3, temperature=1.0, **settings)
    assert ours(MULTILINGUAL_V2, text, 80, t3=t3, **settings) == trimmed(expected)
    assert len(unwatched) < len(expected), "nothing was barred"


def test_going_back_after_the_end_forces_it_as_in_stock() -> None:
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 2.0}
    lengths = []
    for seed in (30, 31):
        t3 = sharp(attentive(seed), 100.0)
        expected = stock_tokens(MULTILINGUAL_V2, "Come back.", 70, t3=t3, temperature=1.0, **settings)
        assert ours(MULTILINGUAL_V2, "Come back.", 70, t3=t3, **settings) == trimmed(expected)
        lengths.append(len(expected))
    assert min(lengths) < 70, "no weights made the analyzer act"


class Listener:
    """A layer that takes hooks and never calls them."""

    self_attn = SimpleNamespace(register_forward_hook=lambda hook: None)


def walks(kind: int, size: int, frames: int, chance: torch.Generator) -> torch.Tensor:
    """Attention that walks through a text, (frames, size): to its end, lingering there, going back, or in leaps."""
    centre = torch.arange(frames) * (0.5, 0.6, 0.4, 1.1)[kind]
    if kind == 1:
        centre = centre.clamp(max=size - 1.5)
    if kind == 2:
        centre = torch.where(centre > size - 2, centre - size + 2, centre)
    if kind == 3:
        centre = centre + 9 * (torch.rand(frames, generator=chance) > 0.8)
    near = torch.exp(-((torch.arange(size)[None] - centre[:, None]) ** 2) / 1.5)
    noisy = near + 0.1 * torch.rand(frames, size, generator=chance)
    return 0.9 * noisy / noisy.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [6, 9, 24, 60])
def test_decisions_equal_the_stock_analyzers(kind: int, size: int) -> None:
    chance, begin, vocabulary = torch.Generator().manual_seed(100 * size + kind), 3, 6570
    frames = 3 * size + 20
    rows = torch.cat((torch.zeros(frames, begin), walks(kind, size, frames, chance)), dim=1)
    tfmr = SimpleNamespace(layers=[Listener()] * 14)
    analyzer = AlignmentStreamAnalyzer(tfmr, None, (begin, begin + size), eos_idx=STOP_SPEECH)
    tokens = [6561, *torch.randint(0, 400 if kind else 12, (frames,), generator=chance).tolist()]
    known, barred, forced = Followed.zeros(1, "cpu"), 0, 0
    begins, sizes = torch.tensor([begin]), torch.tensor([size])
    for number in range(frames):
        logits = torch.randn(1, vocabulary, generator=chance)
        shown = rows[number : number + 1]
        if number == 0:  # the stock analyzer cuts the prefill's attention out of the whole
            shown = torch.cat((torch.zeros(begin + size, begin + size), shown, shown))
        analyzer.last_aligned_attns = [shown] * 3
        expected = analyzer.step(logits.clone(), next_token=tokens[number])
        frame = Frame(rows[number : number + 1], begins, sizes, torch.tensor([number]))
        known, place, _ = follow(frame, known)
        before = tokens[max(0, number - 1)]
        got = decide(logits, frame, known, place, torch.tensor([tokens[number]]), torch.tensor([before]))
        assert torch.equal(got, expected), f"frame {number}"
        assert int(known.place) == int(analyzer.text_position)
        forced += bool(expected[0, STOP_SPEECH] == 2**15)
        barred += bool(expected[0, STOP_SPEECH] == -(2**15))
    assert barred
    assert forced or kind == 3
    again, places = replay(rows, begin)
    assert [bool(torch.equal(one, other)) for one, other in zip(again.parts(), known.parts(), strict=True)] == [
        True
    ] * 4
    assert places[-1][0] == int(known.place)


# --------------------------------------------------------------------------- full size


@pytest.mark.slow
def test_full_size_english_equals_stock() -> None:
    from pipeline.engines.chatterbox.modules import T3Sizes

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t3 = build_t3(CHATTERBOX, T3Sizes())
    settings: dict[str, Any] = {"cfg_weight": 0.5, "repetition_penalty": 1.2}
    expected = stock_tokens(CHATTERBOX, TEXT, 40, t3=t3, temperature=1.0, **settings)
    assert len(expected) == 40
    assert ours(CHATTERBOX, TEXT, 40, t3=t3, **settings) == trimmed(expected)


def test_turbo_ends_with_silence() -> None:
    made = stock_tokens(TURBO, TEXT, 30, repetition_penalty=1.2)
    steps = speak(half(TURBO, limited(29)), segment(temperature=0.0, repetition_penalty=1.2))
    assert wire.sound(ids_of(steps)) == wire.sound(made) + [SILENCE_TOKEN] * 3
    assert sum(step.tokens for step in steps) == len(wire.sound(ids_of(steps)))
