"""Voices on the device."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("chatterbox")

import torch

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox import reference
from pipeline.engines.chatterbox.conditionals import S3GenConditionals
from pipeline.engines.chatterbox.reference import References, trimmed
from tests.pipeline.engines.chatterbox.s3gen_tools import Book

pytestmark = pytest.mark.chatterbox


class Flow:
    """What is needed of one."""

    device = torch.device("cpu")

    def speaker(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding[0, :80]


def voice(tokens: int) -> S3GenConditionals:
    mel = torch.arange(2 * tokens).float()[None, :, None].expand(1, -1, 80)
    return S3GenConditionals(torch.arange(tokens)[None], mel, torch.randn(1, 192))


def references(book: Any, prompt_s: float | None = None) -> References:
    return References(book, Flow(), prompt_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "prompt_s", "kept"),
    [(250, None, 250), (137, None, 137), (250, 4.0, 100), (137, 10.0, 125), (137, 3.5, 75), (20, 3.0, 20)],
)
def test_the_end_of_a_reference_is_kept_in_whole_seconds(tokens: int, prompt_s: float | None, kept: int) -> None:
    cut = trimmed(voice(tokens), prompt_s)
    assert cut.prompt_tokens[0].tolist() == list(range(tokens - kept, tokens))
    assert cut.prompt_mel[0, :, 0].tolist() == list(range(2 * (tokens - kept), 2 * tokens))


def test_tokens_and_frames_agree_and_the_speaker_is_known() -> None:
    book = Book(anna=voice(60))
    made = references(book, 2.0).get("anna")
    assert made.tokens.tolist() == list(range(10, 60))
    assert made.mel.shape == (80, 100)
    assert made.mel[0].tolist() == list(range(20, 120))
    assert torch.equal(made.speaker, book.voices["anna"].speaker[0, :80])


def test_voices_used_last_stay_and_replaced_ones_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_REFERENCES", 2)
    book = Book(a=voice(30), b=voice(31), c=voice(32))
    kept = references(book)
    first = kept.get("a")
    kept.get("b")
    assert kept.get("a") is first
    kept.get("c")
    assert kept.get("a") is first
    assert len(kept) == 2
    book.voices["a"] = voice(40)
    assert len(kept.get("a").tokens) == 40
    with pytest.raises(EngineError, match="nobody"):
        kept.get("nobody")


def test_lengths_out_of_range_are_named() -> None:
    with pytest.raises(EngineError, match="prompt_s: 40 is not between 1 and 30"):
        references(Book(), 40.0)
