"""The token half: text → clauses → phonemes.

espeak-ng itself says where its clauses end and which characters each word stands for, but only
while it speaks text. So a clause is spoken once here (0.9 ms a second of speech) for that and for
its length, stopped at its end, and then translated to phonemes. One clause is one step.

The library keeps its dictionary from clause to clause. What it also keeps changes loudness only, which
is not looked at here (the voices are `steady_voice`), except above the rates it speeds up itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ipc.messages import TokenFacts, TokenSpan
from pipeline.engines.base import (
    EngineConfig,
    EngineError,
    Report,
    Segment,
    StreamError,
    TokenStep,
    check_settings,
)
from pipeline.engines.espeak.catalogue import DEFAULT_VOICE, bundled
from pipeline.engines.espeak.clauses import Clean, WordRange, clean, speakable, terminator_of, window, word_ranges
from pipeline.engines.espeak.folder import DataFolder, steady_voice
from pipeline.engines.espeak.library import RATE_HZ, EspeakError, Library, Spoken, data_path, library_path
from pipeline.engines.espeak.pieces import Ending, Piece, decode, encode
from pipeline.engines.espeak.spelling import respell, split
from pipeline.engines.espeak.style import SETTINGS, SPEED_UP_WPM, Style, style_of

LOAD_DEADLINE_S = 30.0
LONGEST_CHARS = 500


@dataclass
class _Stream:
    """An admitted segment. ``at``: where its next clause begins in ``text``; ``skip``: parts of that
    clause a predecessor has made; ``ready``: what is made and not yet handed out."""

    segment: Segment
    text: Clean
    voice: str
    style: Style
    at: int = 0
    skip: int = 0
    tokens: int = 0
    paused: bool = False
    ready: deque[TokenStep] = field(default_factory=deque)


class EspeakTokens:
    """`pipeline.engines.base.TokenModel` of espeak."""

    def __init__(self, config: EngineConfig, report: Report) -> None:
        report("loading espeak-ng", LOAD_DEADLINE_S)
        began = time.monotonic()
        self._library = open_library(steady_voice, dictionaries=True)
        self._was_fast = False
        self._streams: dict[int, _Stream] = {}
        self._facts = facts_of(config.max_batch, 0.0)
        warm_up = Segment("Ready, 1.", "end", "", "", 1.0, 0, {})
        self.admit(0, warm_up)
        while self.step():
            continue
        self._facts = facts_of(config.max_batch, time.monotonic() - began)

    @property
    def facts(self) -> TokenFacts:
        return self._facts

    def admit(self, stream: int, segment: Segment, history: bytes = b"", history_tokens: int = 0) -> None:
        if stream in self._streams:
            raise EngineError(f"stream {stream} is already admitted")
        check_settings(self._facts, segment.settings)
        chosen = bundled().choose(segment.voice, segment.language)
        one = _Stream(segment, clean(segment.text), chosen.id, style_of(segment.settings, segment.speed))
        made = decode(history)
        one.tokens = sum(piece.words for piece in made)
        if one.tokens != history_tokens:
            raise EngineError(f"history_tokens: {history_tokens}, but the history holds {one.tokens}")
        if made:
            last = made[-1]
            done = last.part + 1 == last.parts
            one.at, one.skip = (last.next, 0) if done else (last.at, last.part + 1)
        self._streams[stream] = one

    def step(self) -> list[TokenStep | StreamError]:
        made: list[TokenStep | StreamError] = []
        for number, stream in list(self._streams.items()):
            if stream.paused:
                continue
            try:
                step: TokenStep | StreamError = self._advance(number, stream)
            except EspeakError as error:
                step = StreamError(number, str(error))
            made.append(step)
            if isinstance(step, StreamError) or step.final:
                self.release(number)
        return made

    def pause(self, stream: int) -> None:
        if stream in self._streams:
            self._streams[stream].paused = True

    def resume(self, stream: int) -> None:
        if stream in self._streams:
            self._streams[stream].paused = False

    def release(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def close(self) -> None:
        self._streams.clear()
        self._library.close()

    def _advance(self, number: int, stream: _Stream) -> TokenStep:
        """The next piece of the stream; clauses without a word are passed over."""
        while not stream.ready:
            if not speakable(stream.text.text[stream.at :]):
                return TokenStep(number, 0, b"", 0.0, final=True)
            self._translate(number, stream)
        return stream.ready.popleft()

    def _translate(self, number: int, stream: _Stream) -> None:
        """Make the steps of the clause that begins at ``stream.at``."""
        text, at = stream.text.text, stream.at
        fast = stream.style.parameters["rate"] >= SPEED_UP_WPM
        if fast or self._was_fast:
            self._library.renew()
        self._was_fast = fast
        self._library.use(stream.voice, stream.style.parameters)
        pause = stream.segment.boundary not in ("end", "pause")
        given = window(text, at)
        spoken = self._library.speak(given, pause=pause, one_clause=True)
        length = spoken.clauses[0].position if spoken.clauses else 0
        end = at + (min(length, len(given)) if length > 0 else len(given))
        stream.at, skip, stream.skip = end, stream.skip, 0
        parts = split(respell(self._library.phonemes(text[at:end]), stream.voice.partition("+")[0]))
        if parts:
            self._emit(number, stream, _Clause(at, end, text[at:end], parts, spoken), skip)

    def _emit(self, number: int, stream: _Stream, clause: _Clause, skip: int) -> None:
        text = stream.text.text
        counts = [len(part.split()) for part in clause.parts]
        ranges = word_ranges(text, clause.at, clause.end, clause.spoken.words, sum(counts))
        final = not speakable(text[clause.end :])
        ending: Ending
        if not final and clause.abbreviated(stream.style.parameters["rate"]):
            terminator, ending = "", "join"
        else:
            terminator, ending = _ending(clause.text, final, stream.segment)
        for part, phonemes in enumerate(clause.parts):
            if part < skip:
                continue
            last = part + 1 == len(clause.parts)
            first = sum(counts[:part])
            piece = Piece(
                phonemes=phonemes,
                terminator=terminator if last else "",
                ending=ending if last else "join",
                words=counts[part],
                at=clause.at,
                part=part,
                parts=len(clause.parts),
                next=clause.end,
            )
            step = TokenStep(
                stream=number,
                tokens=piece.words,
                data=encode(piece),
                seconds=clause.seconds(first, first + piece.words) / stream.style.stretch,
                alignment=_alignment(ranges, first, piece.words, stream.tokens, stream.text),
                final=final and last,
            )
            stream.tokens += piece.words
            stream.ready.append(step)


@dataclass(frozen=True)
class _Clause:
    """A clause of the text and what the library said about it."""

    at: int
    end: int
    text: str
    parts: list[str]
    spoken: Spoken

    def seconds(self, first: int, until: int) -> float:
        """How long words [first, until) last, with the clause's pause after the last."""
        begins = [word.sample for word in self.spoken.words] or [0]
        count = sum(len(part.split()) for part in self.parts)
        places = [begins[min(index * len(begins) // count, len(begins) - 1)] for index in range(count)]
        end = self._end_sample if until >= count else places[until]
        return max(0, end - (places[first] if first else 0)) / RATE_HZ

    def abbreviated(self, rate: int) -> bool:
        """Whether the library took a dot at the end for an abbreviation's (``Dr. Smith``) and left out
        the pause: 155 samples instead of 6,638 at 175 words a minute, 111 instead of 552 at 449. Not to
        be seen in sped-up sound."""
        if rate >= SPEED_UP_WPM:
            return False
        shortest = max(300, 300 * 175 // rate)
        sound = self.spoken.pcm[max(0, self._end_sample - shortest) : self._end_sample]
        return terminator_of(self.text) == "." and bool(sound.any())

    @property
    def _end_sample(self) -> int:
        return self.spoken.clauses[0].sample if self.spoken.clauses else len(self.spoken.pcm)


def _ending(clause: str, final: bool, segment: Segment) -> tuple[str, Ending]:
    """(terminator, what follows) of a clause: as if the whole text was spoken at once.

    After the last clause of a text, and before a pause that was asked for, there is none of our own.
    A segment cut between two words of a clause goes on as after a comma, without the pause. What a
    paragraph pauses longer than a sentence is added by the pipeline.
    """
    mark = terminator_of(clause)
    if not final:
        return mark, "pause"
    match segment.boundary:
        case "end" | "pause":
            return mark, "end"
        case "clause":
            return mark or ",", "pause" if mark else "join"
        case _:
            return mark, "pause"


def _alignment(ranges: list[WordRange], first: int, words: int, first_token: int, text: Clean) -> tuple[TokenSpan, ...]:
    """The spans of words [first, first + words) of a clause, which are the tokens from ``first_token`` on."""
    spans = []
    for index, one in enumerate(ranges):
        until = ranges[index + 1].first if index + 1 < len(ranges) else first + words
        if one.first < first + words and until > first:
            begin = max(one.first, first)
            spans.append(
                TokenSpan(first_token + begin - first, text.origin[one.start], _origin_end(text, one.end), one.exact)
            )
    return tuple(spans)


def _origin_end(text: Clean, end: int) -> int:
    """Where in the original text the clean text up to ``end`` ends: all marks of its last letter included."""
    return (
        text.origin[end]
        if end < len(text.origin) - 1 and text.origin[end] > text.origin[end - 1] + 1
        else (text.origin[end - 1] + 1)
    )


def seed_of(seed: int, first_token: int) -> int:
    """The library's random seed for the piece that begins with this token."""
    return (seed * 1_000_003 + first_token * 7919 + 1) % 0x7FFFFFFF


def open_library(edit: Callable[[bytes], bytes], dictionaries: bool) -> Library:
    """espeak-ng, loaded for one half alone (see `DataFolder`)."""
    voices = [(voice.id, voice.below) for voice in bundled().voices]
    return Library(DataFolder(data_path(), library_path(), voices, edit, dictionaries))


def facts_of(max_batch: int, load_s: float) -> TokenFacts:
    catalogue = bundled()
    return TokenFacts(
        engine="espeak",
        voices=catalogue.listing(),
        default_voice=DEFAULT_VOICE,
        languages=tuple(sorted(catalogue.names)),
        settings=SETTINGS,
        shortest_chars=1,
        longest_chars=LONGEST_CHARS,
        seconds_per_char=0.07,
        max_batch=max(1, max_batch),
        longest_chunk_s=40.0,
        sentence_pause_ms=0,
        load_s=load_s,
    )
