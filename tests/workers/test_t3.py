"""The t3 stage: credit, histories, batches and failures."""

from __future__ import annotations

import pytest

from ipc.messages import (
    CancelStream,
    Generate,
    Grant,
    History,
    Internal,
    Probe,
    Rendered,
    StreamFailed,
    TokenChunk,
    TokenSpan,
    Welcome,
)
from pipeline.engines.base import EngineConfig
from tests.workers.tiny import BROKEN, CHUNK_TOKENS, POISON, REFUSED, TOKEN_S, TinyTokens, encode
from workers.t3 import TokenStreams


def make(max_batch: int = 8) -> tuple[TinyTokens, TokenStreams]:
    model = TinyTokens(EngineConfig(max_batch=max_batch), lambda doing, deadline_s: None)
    return model, TokenStreams(model)


def generate(stream: int, text: str, credit_s: float = 100.0, history: int = 0) -> Generate:
    return Generate(stream, text, "sentence", "tiny", "en", 1.0, 7, {}, credit_s, history, history * TOKEN_S)


def run(streams: TokenStreams, steps: int = 1000) -> list[Internal]:
    made: list[Internal] = []
    for _ in range(steps):
        if not streams.runnable:
            return made
        made += streams.step()
    raise AssertionError("it never ends")


def chunks(messages: list[Internal], stream: int) -> list[TokenChunk]:
    return [message for message in messages if isinstance(message, TokenChunk) and message.stream == stream]


def test_a_segment_becomes_numbered_chunks_and_ends() -> None:
    model, streams = make()
    assert streams.handle(generate(1, "Hello, world")) == []
    assert streams.runnable
    made = chunks(run(streams), 1)
    assert [(chunk.first_token, chunk.tokens, chunk.final) for chunk in made] == [
        (0, 4, False),
        (4, 4, False),
        (8, 4, True),
    ]
    assert b"".join(chunk.data for chunk in made) == encode("Hello, world")
    assert made[0].seconds == pytest.approx(4 * TOKEN_S)
    assert made[1].alignment[0] == TokenSpan(4, 4, 5, True)
    assert len(streams) == 0
    assert not model.streams


def test_an_empty_segment_ends_with_an_empty_chunk() -> None:
    _, streams = make()
    streams.handle(generate(1, ""))
    (chunk,) = run(streams)
    assert isinstance(chunk, TokenChunk)
    assert (chunk.tokens, chunk.final) == (0, True)


def test_a_stream_makes_no_more_than_its_credit_and_one_chunk() -> None:
    _, streams = make()
    streams.handle(generate(1, "x" * 100, credit_s=10 * TOKEN_S))
    made = chunks(run(streams), 1)
    assert sum(chunk.tokens for chunk in made) == 12  # 4, 8 < 10 ≤ 12
    assert streams.blocked
    streams.handle(Grant(1, 12 * TOKEN_S))
    assert not streams.runnable
    streams.handle(Grant(1, 13 * TOKEN_S))
    assert streams.runnable
    assert not streams.blocked
    assert sum(chunk.tokens for chunk in chunks(run(streams), 1)) == CHUNK_TOKENS


def test_without_credit_nothing_is_made() -> None:
    _, streams = make()
    streams.handle(generate(1, "x" * 10, credit_s=0.0))
    assert not streams.runnable
    assert streams.blocked
    assert streams.step() == []


def test_a_stream_without_credit_does_not_hold_up_the_others() -> None:
    _, streams = make()
    streams.handle(generate(1, "x" * 100, credit_s=TOKEN_S))
    streams.handle(generate(2, "y" * 100))
    made = run(streams)
    assert sum(chunk.tokens for chunk in chunks(made, 1)) == CHUNK_TOKENS
    assert chunks(made, 2)[-1].final


def test_a_history_is_joined_and_counts_towards_number_and_credit() -> None:
    model, streams = make()
    text = "x" * 6 + "y" * 10
    streams.handle(generate(1, text, credit_s=7 * TOKEN_S, history=6))
    assert not streams.runnable
    streams.handle(History(1, 0, 4, encode(text[:4])))
    assert not model.streams
    streams.handle(History(1, 4, 2, encode(text[4:6])))
    (chunk,) = chunks(run(streams), 1)
    assert (chunk.first_token, chunk.tokens, chunk.data) == (6, 4, encode(text[6:10]))
    streams.handle(Grant(1, 100.0))
    rest = chunks(run(streams), 1)
    assert b"".join(one.data for one in rest) == encode(text[10:])
    assert rest[0].first_token == 10


@pytest.mark.parametrize("pieces", [[History(1, 2, 4, b"")], [History(1, 0, 4, b""), History(1, 3, 2, b"")]])
def test_a_gap_in_the_history_fails_the_stream(pieces: list[History]) -> None:
    _, streams = make()
    streams.handle(generate(1, "x" * 20, history=6))
    (failed,) = [answer for piece in pieces for answer in streams.handle(piece)]
    assert isinstance(failed, StreamFailed)
    assert "were the next" in failed.reason
    assert len(streams) == 0


def test_what_the_engine_refuses_fails_alone() -> None:
    _, streams = make()
    streams.handle(generate(1, "good"))
    (failed,) = streams.handle(generate(2, f"bad {REFUSED}"))
    assert failed == StreamFailed(2, f"text: {REFUSED} cannot be spoken")
    assert chunks(run(streams), 1)[-1].final


def test_a_stream_that_breaks_fails_alone() -> None:
    _, streams = make()
    streams.handle(generate(1, "good text"))
    streams.handle(generate(2, f"well, {BROKEN}"))
    made = run(streams)
    assert StreamFailed(2, "broken") in made
    assert len(chunks(made, 2)) == 1
    assert chunks(made, 1)[-1].final
    assert len(streams) == 0


def test_an_error_that_names_no_stream_is_the_process_s_own() -> None:
    _, streams = make()
    streams.handle(generate(1, f"{POISON}"))
    with pytest.raises(RuntimeError, match="poison"):
        streams.step()


def test_a_cancelled_stream_frees_its_place_at_once() -> None:
    model, streams = make(max_batch=1)
    streams.handle(generate(1, "x" * 100))
    streams.handle(generate(2, "y" * 4))
    streams.handle(generate(3, "z" * 4))
    streams.step()
    assert list(model.streams) == [1]
    assert streams.handle(CancelStream(2)) == []
    assert streams.handle(CancelStream(1)) == []
    assert list(model.streams) == [3]
    assert chunks(run(streams), 3)[-1].final
    assert streams.handle(CancelStream(99)) == []


def test_segments_beyond_the_batch_wait_in_order() -> None:
    _, streams = make(max_batch=2)
    for stream in range(1, 6):
        streams.handle(generate(stream, "x" * 8))
    assert len(streams) == 5
    finished = [chunk.stream for chunk in run(streams) if isinstance(chunk, TokenChunk) and chunk.final]
    assert finished == [1, 2, 3, 4, 5]


def test_a_refused_segment_in_the_queue_is_reported_when_its_turn_comes() -> None:
    _, streams = make(max_batch=1)
    streams.handle(generate(1, "x" * 4))
    streams.handle(generate(2, REFUSED))
    streams.handle(generate(3, "z" * 4))
    made = run(streams)
    assert [type(one) for one in made] == [TokenChunk, StreamFailed, TokenChunk]


def test_a_new_dispatcher_voids_everything() -> None:
    model, streams = make(max_batch=1)
    streams.handle(generate(1, "x" * 100))
    streams.handle(generate(2, "x" * 100))
    streams.handle(generate(3, "x" * 100, history=3))
    streams.handle(Welcome(2, 1))
    assert len(streams) == 0
    assert not model.streams
    assert not streams.runnable
    streams.handle(generate(4, "abc"))
    assert chunks(run(streams), 4)[-1].final


def test_the_same_stream_twice_is_refused() -> None:
    model, streams = make()
    streams.handle(generate(1, "x" * 100))
    (failed,) = streams.handle(generate(1, "y" * 100))
    assert isinstance(failed, StreamFailed)
    assert not model.streams


def test_messages_for_streams_that_are_gone_or_for_others_are_ignored() -> None:
    _, streams = make()
    for message in (Grant(9, 5.0), History(9, 0, 1, b"x"), Probe(1), Rendered(1, 0, 0, None)):
        assert streams.handle(message) == []
