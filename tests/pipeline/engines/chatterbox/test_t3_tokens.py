"""The token half: what a stream says is its own, whoever speaks beside it, however it was cut, wherever it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("chatterbox")

import torch

from pipeline.engines.base import Engine, EngineConfig, EngineError, Report, StreamError, TokenStep
from pipeline.engines.chatterbox import wire
from pipeline.engines.chatterbox.backbone import Backbone, Cache
from pipeline.engines.chatterbox.build import Convert
from pipeline.engines.chatterbox.guards import Limits
from pipeline.engines.chatterbox.int8 import quantised
from pipeline.engines.chatterbox.sampling import Sampling
from pipeline.engines.chatterbox.tokens import ChatterboxTokens
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V2, MULTILINGUAL_V3, TURBO, Variant
from tests.pipeline.engines import conformance
from tests.pipeline.engines.chatterbox.t3_tools import (
    TEXT,
    VARIANTS,
    conditionals,
    drain,
    half,
    ids_of,
    limited,
    segment,
    speak,
    stock,
)

pytestmark = pytest.mark.chatterbox

SHORT = limited(24)


def sounds(steps: list[TokenStep]) -> int:
    return sum(step.tokens for step in steps)


def rounds(model: ChatterboxTokens, count: int) -> list[TokenStep]:
    """So many steps."""
    made: list[TokenStep] = []
    for _ in range(count):
        made += [step for step in model.step() if isinstance(step, TokenStep)]
    return made


def told(steps: list[TokenStep], stream: int) -> tuple[Any, ...]:
    """What a stream said, however it was cut."""
    own = [step for step in steps if step.stream == stream]
    return sounds(own), b"".join(step.data for step in own), [span for step in own for span in step.alignment]


@pytest.mark.parametrize("convert", [None, quantised], ids=["float32", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_after_any_step_goes_on_as_undisturbed(variant: Variant, convert: Convert | None) -> None:
    whole = speak(half(variant, SHORT, convert=convert), segment())
    assert len(whole) > 4
    successor = half(variant, SHORT, convert=convert)
    for cut in range(1, len(whole)):
        before, after = whole[:cut], whole[cut:]
        data = b"".join(step.data for step in before)
        successor.admit(cut, segment(), data, sounds(before))
        assert told(drain(successor), cut) == told([replace(step, stream=cut) for step in after], cut), f"after {cut}"


def test_resumed_in_mid_utterance_and_again_says_the_same() -> None:
    tuning = limited(120)
    whole = speak(half(CHATTERBOX, tuning), segment())
    data, made = b"", 0
    for lives in range(1, 6):
        model = half(CHATTERBOX, tuning)
        model.admit(1, segment(), data, made)
        for step in rounds(model, 4 + lives):
            data, made = data + step.data, made + step.tokens
    assert b"".join(step.data for step in whole).startswith(data)
    assert made > 100


def test_ids_that_are_no_sound_travel_with_the_next_that_is() -> None:
    whole = speak(half(CHATTERBOX, limited(60)), segment())
    ids = ids_of(whole)
    assert len(wire.sound(ids)) < len(ids), "this seed says nothing but sound: take another"
    for step in whole:
        made = ids_of([step])
        assert step.tokens == len(wire.sound(made))
        assert bool(step.data) == bool(step.tokens)
        assert step.seconds == step.tokens / 25


@pytest.mark.parametrize("convert", [None, quantised], ids=["float32", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_together_say_what_each_says_alone(variant: Variant, convert: Convert | None) -> None:
    model = half(variant, SHORT, max_batch=4, convert=convert)
    weights: list[dict[str, Any]] = (
        [{}] * 4 if variant.turbo else [{}, {"cfg_weight": 0.0}, {"min_p": 0.2}, {"top_p": 0.8}]
    )
    wanted = {
        number: segment(TEXT[: 10 + 9 * number], seed=number, voice=("ada", "bob")[number % 2], **weights[number])
        for number in range(4)
    }
    alone = {number: speak(model, one, number) for number, one in wanted.items()}
    made: list[TokenStep] = []
    for number, one in wanted.items():  # each joins while the others are under way
        model.admit(number, one)
        made += rounds(model, 1)
    made += drain(model)
    for number in wanted:
        assert told(made, number) == told(alone[number], number)


def test_logits_of_a_row_hardly_depend_on_its_batch() -> None:
    texts = [TEXT[: 12 + 5 * number] for number in range(4)]
    alone = []
    for text in texts:
        model = half(MULTILINGUAL_V3, SHORT)
        model.admit(1, segment(text, temperature=0.0))
        model.step()
        alone.append(model._decoder._logits[:2].clone())
    model = half(MULTILINGUAL_V3, SHORT, max_batch=4)
    for number, text in enumerate(texts):
        model.admit(number, segment(text, temperature=0.0))
    model.step()
    together = model._decoder._logits[:8]
    assert (together - torch.cat(alone)).abs().max() < 1e-4


def test_other_seeds_and_voices_say_something_else() -> None:
    model = half(CHATTERBOX, SHORT)
    one = ids_of(speak(model, segment(seed=1)))
    assert ids_of(speak(model, segment(seed=1))) == one
    assert ids_of(speak(model, segment(seed=2))) != one
    assert ids_of(speak(model, segment(seed=1, temperature=2.0))) != one


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_chunk_size_does_not_change_what_is_said(steps: int) -> None:
    expected = speak(half(MULTILINGUAL_V2, SHORT), segment())
    made = speak(half(MULTILINGUAL_V2, replace(SHORT, steps_per_check=steps)), segment())
    assert told(made, 1) == told(expected, 1)
    assert max(step.tokens for step in made) <= steps


@pytest.mark.parametrize("variant", [pytest.param(CHATTERBOX, id="english"), pytest.param(TURBO, id="turbo")])
def test_rounds_queued_ahead_and_fixed_batch_sizes_change_nothing(variant: Variant) -> None:
    plain, ahead = half(variant, SHORT), half(variant, replace(SHORT, ahead=1))
    ahead._decoder.seats.exact = False  # as with graphs: batches of 1, 2, 4, … rows
    wanted = {number: segment(TEXT[: 9 + 9 * number], seed=number) for number in range(3)}
    expected = {number: told(speak(plain, one, number), number) for number, one in wanted.items()}
    made: list[TokenStep] = []
    for number, one in wanted.items():
        ahead.admit(number, one)
        made += rounds(ahead, 1)
    ahead.pause(1)
    made += rounds(ahead, 3)
    ahead.resume(1)
    made += drain(ahead)
    assert {number: told(made, number) for number in wanted} == expected
    assert ahead.step() == []


# --------------------------------------------------------------------------- pause, cancel, places


def test_paused_stream_waits_and_loses_nothing() -> None:
    model = half(CHATTERBOX, limited(40))
    one, other = segment(seed=1), segment(TEXT[:20], seed=2)
    expected = told(speak(model, one, 1), 1), told(speak(model, other, 2), 2)
    model.admit(1, one)
    model.admit(2, other)
    made = rounds(model, 2)
    model.pause(1)
    while steps := [step for step in model.step() if isinstance(step, TokenStep)]:
        assert {step.stream for step in steps} == {2}
        made += steps
    model.resume(1)
    made += drain(model)
    assert (told(made, 1), told(made, 2)) == expected


def test_cancelled_stream_leaves_the_others_as_they_are_and_its_place_to_the_next() -> None:
    model = half(CHATTERBOX, limited(32), max_batch=3)
    wanted = {number: segment(TEXT[: 10 + 8 * number], seed=number) for number in range(4)}
    expected = {number: told(speak(model, one, number), number) for number, one in wanted.items()}
    for number in (0, 1, 2):
        model.admit(number, wanted[number])
    made = rounds(model, 2)
    model.release(0)
    made += rounds(model, 1)
    model.admit(3, wanted[3])
    made += drain(model)
    for number in (1, 2, 3):
        assert told(made, number) == expected[number]
    assert sounds([step for step in made if step.stream == 0]) <= 8


def test_stepping_pausing_and_leaving_at_random_changes_nothing() -> None:
    tuning, chance = limited(20), torch.Generator().manual_seed(4)
    model = half(CHATTERBOX, tuning, max_batch=4)
    wanted = {
        number: segment(TEXT[: 6 + number], seed=number, cfg_weight=(0.5, 0.0)[number % 3 == 0]) for number in range(14)
    }
    expected = {number: told(speak(model, one, number), number) for number, one in wanted.items()}
    waiting, running, paused, made = list(wanted), set(), set(), []
    while waiting or running:
        draw = int(torch.randint(4, (), generator=chance))
        if draw == 0 and waiting and len(running) < 4:
            number = waiting.pop(0)
            model.admit(number, wanted[number])
            running.add(number)
        elif draw == 1 and running:
            number = sorted(running)[int(torch.randint(len(running), (), generator=chance))]
            (model.resume if number in paused else model.pause)(number)
            paused ^= {number}
        else:
            for step in rounds(model, 1):
                assert step.stream not in paused
                made.append(step)
                running -= {step.stream} if step.final else set()
    assert {number: told(made, number) for number in wanted} == expected
    assert all(owner is None for owner in model._decoder.seats.owners)


def test_stream_without_guidance_costs_one_row_and_turbo_always() -> None:
    model = half(CHATTERBOX, SHORT, max_batch=2)
    model.admit(1, segment(cfg_weight=0.0))
    model.admit(2, segment(cfg_weight=0.5))
    assert [len(seat.rows) for seat in model._seated] == [1, 2]
    assert model._decoder.seats.together(list(model._seated)) == 3
    turbo = half(TURBO, SHORT, max_batch=2)
    turbo.admit(1, segment())
    assert [len(seat.rows) for seat in turbo._seated] == [1]
    assert turbo._decoder.cache.rows == 2


def test_rows_of_those_who_speak_are_brought_together() -> None:
    model = half(CHATTERBOX, SHORT, max_batch=4)
    for number in range(4):
        model.admit(number, segment(seed=number))
    rounds(model, 1)
    for number in (0, 1, 2):
        model.pause(number)
    (step,) = rounds(model, 1)
    assert step.stream == 3
    speaking = [seat for seat, place in model._seated.items() if not place.paused]
    assert sorted(speaking[0].rows) == [0, 1]


def test_full_model_refuses_and_releases_unknown_streams_in_silence() -> None:
    model = half(TURBO, SHORT, max_batch=1)
    model.admit(1, segment())
    with pytest.raises(RuntimeError, match="all 1 places are taken"):
        model.admit(2, segment())
    with pytest.raises(RuntimeError, match="already admitted"):
        model.admit(1, segment())
    model.release(1)
    for method in (model.release, model.pause, model.resume):
        method(404)
    model.admit(2, segment())
    model.close()
    assert model.step() == []


# --------------------------------------------------------------------------- refusals, guards, memory


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"voice": "eve"}, "voice"),
        ({"language": "xx"}, "language: 'xx'"),
        ({"settings": {"loudness": 1}}, "settings.loudness"),
        ({"text": ""}, "text: nothing"),
        ({"text": "a" * 100}, "text: 102 text tokens, 96"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    model = half(CHATTERBOX, SHORT)
    with pytest.raises(EngineError, match=message):
        model.admit(1, replace(segment(), **wrong))
    assert speak(model, segment(), 1)


@pytest.mark.parametrize(("data", "tokens"), [(b"\x01", 1), (b"\x01\x00", 2), (b"\xff\xff", 1)])
def test_history_that_is_none_is_refused(data: bytes, tokens: int) -> None:
    with pytest.raises(EngineError, match="tokens:"):
        half(TURBO, SHORT).admit(1, segment(), data, tokens)


def test_guards_end_a_stream_with_a_note() -> None:
    steps = speak(half(CHATTERBOX, replace(SHORT, limits=Limits(start_s=0.4, char_s=0.02))), segment("Hello there."))
    assert "too long for 12 characters" in steps[-1].note
    assert [step.note for step in steps[:-1]] == [""] * (len(steps) - 1)
    assert len(ids_of(steps)) <= round((0.4 + 12 * 0.02) * 25)
    steps = speak(half(CHATTERBOX, SHORT), segment())
    assert "limit of 24 tokens" in steps[-1].note


def test_broken_weights_break_their_stream_alone() -> None:
    model = half(TURBO, SHORT)
    model.admit(1, segment(seed=1))
    model.admit(2, segment(seed=2))
    model._decoder.cache.layers[0][:, model._places[1].seat.rows[0], :, 5] = float("nan")
    made = model.step()
    assert isinstance(made[0], StreamError)
    assert "no number at token 0" in made[0].reason
    made += drain(model)
    assert {step.stream for step in made[1:]} == {2}


def test_prefixes_of_voices_are_kept_within_their_bound() -> None:
    model = half(CHATTERBOX, SHORT)
    prefixes = model._decoder.prefixes
    ada, bob = conditionals("ada").t3, conditionals("bob").t3
    first = prefixes.of(ada, 0.5)
    assert prefixes.of(ada, 0.5) is first
    other = prefixes.of(ada, 1.5)
    assert not torch.equal(first, other)
    assert not torch.equal(first, prefixes.of(bob, 0.5))
    assert len(prefixes) == 3
    prefixes._most_bytes = 2 * first.nbytes
    prefixes.of(bob, 0.7)
    assert len(prefixes) == 2
    assert prefixes.of(ada, 0.5) is not first
    assert torch.equal(prefixes.of(ada, 0.5), first)


def test_out_of_memory_at_admission_waits_for_another_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = half(CHATTERBOX, SHORT)
    expected = told(speak(model, segment(seed=2), 2), 2)
    model.admit(1, segment(seed=1))
    admit, full = model._decoder.admit, True

    def short_of_memory(*what: Any) -> Any:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return admit(*what)

    monkeypatch.setattr(model._decoder, "admit", short_of_memory)
    model.admit(2, segment(seed=2))
    made = rounds(model, 2)
    assert {step.stream for step in made} == {1}
    full = False
    made += drain(model)
    assert told(made, 2) == expected
    full = True
    with pytest.raises(EngineError, match="not enough memory"):
        model.admit(3, segment())


def test_less_memory_makes_fewer_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[str] = []
    make = Cache.__init__

    def small(self: Cache, shape: Any, rows: int, *more: Any) -> None:
        if rows > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        make(self, shape, rows, *more)

    monkeypatch.setattr(Cache, "__init__", small)
    monkeypatch.setattr(
        "pipeline.engines.chatterbox.tokens.build",
        lambda *a, report, **k: build_reporting(reports, *a, **k),
    )
    model = half(CHATTERBOX, SHORT, max_batch=8)
    assert model.facts.max_batch == 2
    assert any("2 streams at most" in line for line in reports)
    assert speak(model, segment())


def build_reporting(reports: list[str], *what: Any, **more: Any) -> Any:
    from pipeline.engines.chatterbox.build import build

    return build(*what, report=lambda doing, deadline_s: reports.append(doing), **more)


def test_works_of_every_size_can_be_captured_one_by_one() -> None:
    """What graphs would hold, run plainly: every size works, and leaves nobody's state changed."""
    decoder = half(CHATTERBOX, SHORT, max_batch=3)._decoder
    decoder.seats.exact = False
    works = decoder.works()
    assert {size for name, size, _ in works if name == "forward"} == {1, 2, 4, 6}
    before = decoder._state.clone()
    for work in works:
        decoder.capture(work)
    assert torch.equal(decoder._state, before)


# --------------------------------------------------------------------------- int8, half precision, facts


@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_has_no_matrix_of_floats_in_its_backbone(variant: Variant) -> None:
    backbone = half(variant, SHORT, convert=quantised)._decoder.net.backbone
    assert isinstance(backbone, Backbone)
    assert not [one for one in backbone.modules() if isinstance(one, torch.nn.Linear)]


def test_bfloat16_speaks() -> None:
    model = half(CHATTERBOX, SHORT, dtype=torch.bfloat16)
    assert model._decoder.cache.layers[0].dtype == torch.bfloat16
    assert len(ids_of(speak(model, segment()))) >= 20


def test_stock_module_is_left_as_it_was() -> None:
    t3 = stock(CHATTERBOX)
    before = {name: value.clone() for name, value in t3.state_dict().items()}
    speak(half(CHATTERBOX, SHORT), segment())
    assert all(torch.equal(value, before[name]) for name, value in t3.state_dict().items())


def test_without_a_gpu_a_round_is_announced_with_time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the supervisor takes a process that decodes for longer than `supervise.hang_s` for hung."""
    told: list[tuple[str, float]] = []
    model = half(CHATTERBOX, SHORT)
    monkeypatch.setattr(model, "_report", lambda doing, deadline_s: told.append((doing, deadline_s)))
    model.admit(1, segment())
    model.step()
    assert told[0] == ("reading a text", 60.0)
    assert set(told[1:]) == {("decoding", 60.0)}


def test_facts_tell_what_the_model_speaks() -> None:
    facts = half(MULTILINGUAL_V2, SHORT, max_batch=3).facts
    assert (facts.engine, facts.max_batch, facts.default_voice) == ("chatterbox-multilingual", 3, "ada")
    assert len(facts.languages) == 23
    assert facts.longest_chunk_s == pytest.approx(4 / 25)


def test_v3_is_followed_through_its_text_but_ends_when_it_likes() -> None:
    model = half(MULTILINGUAL_V3, SHORT, t3=stock(MULTILINGUAL_V2))
    assert model._decoder.kind.heads
    assert not model._decoder.kind.analyzed
    steps = speak(model, segment())
    assert len(ids_of(steps)) > 10
    assert next(span for step in steps for span in step.alignment).first_char == 0


def test_prefill_in_one_pass_equals_steps() -> None:
    model = half(CHATTERBOX, limited(30))
    decoder = model._decoder
    made = ids_of(speak(model, segment(temperature=0.0)))
    asked = Sampling(0.0, 1.0, 0.05, 0, 1.2, 0.5, 7)
    text = [255, 400, 401, 402, 0]
    voice = conditionals().t3
    one, _ = decoder.admit(voice, 0.5, text, [], asked)
    other, _ = decoder.admit(voice, 0.5, text, made[:9], asked)
    decoder._write_plan([one], rows=2, entries=1)
    for token in made[:9]:  # force the first to say the same, one token at a time
        decoder._forward(2, 256)
        decoder._state[one.slot, 0] = token
        decoder._state[one.slot, 2] += 1
        one.sampled += 1
    assert one.next_position == other.next_position
    upto = one.next_position
    for layer in decoder.cache.layers:
        for mine, theirs in zip(one.rows, other.rows, strict=True):
            assert torch.allclose(layer[:, mine, :, :upto], layer[:, theirs, :, :upto], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_say_what_plain_calls_say(variant: Variant) -> None:
    plain = half(variant, replace(SHORT, graphs=False), device="cuda:0", max_batch=3)
    graphed = half(variant, SHORT, device="cuda:0", max_batch=3)
    assert len(graphed._decoder.graphs) == len(graphed._decoder.works()), "graphs were given up"
    wanted = {number: segment(TEXT[: 9 + 9 * number], seed=number) for number in range(3)}
    made: list[TokenStep] = []
    for number, one in wanted.items():
        graphed.admit(number, one)
        made += rounds(graphed, 1)
    made += drain(graphed)
    for number, one in wanted.items():
        assert told(made, number) == told(speak(plain, one, number), number)


# --------------------------------------------------------------------------- conformance of the half alone


class Mute:
    """An audio half that is never asked for sound."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("nothing", 1.0)

    def close(self) -> None:
        pass


def subject(variant: Variant) -> conformance.Subject:
    def tokens(config: EngineConfig, report: Report) -> ChatterboxTokens:
        report("small T3", 1.0)
        return half(variant, SHORT, max_batch=config.max_batch)

    texts = (TEXT, "One more sentence, shorter.", "And the last one of them all.")
    return conformance.Subject(variant.name, Engine(variant.name, tokens, Mute), texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "check",
    [
        conformance.alignment_lies_inside_the_text,
        conformance.tokens_go_on_after_any_history,
        conformance.a_paused_stream_waits_and_then_makes_the_same,
    ],
)
def test_half_conforms(check: Any, variant: Variant) -> None:
    check(subject(variant))
