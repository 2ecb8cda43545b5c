"""What `speak` does with a text: send it (in pieces, if it is long or still growing), follow it, keep
its sound.

A text in pieces is written by a thread, while the main thread reads what happens: so that sound and
errors arrive while standard input is waited for, and Ctrl-C finds the main thread. The pipeline ends
a text whose writer is silent for long; what comes after the silence begins another utterance.
"""

from __future__ import annotations

import argparse
import codecs
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from ipc.client import SpeakOptions
from ipc.client_blocking import Client, Speech
from ipc.client_errors import ChatterlineError, SpeechCancelled, SpeechError, failure_of
from ipc.client_track import Sound
from ipc.messages import Aligned, Audio, Cancelled, Event, Failed, Finished, Progress, Rejected
from launch.sound_out import Meter, Sink, open_sink, sink_kind

WHOLE_CHARS = 10_000
"""A longer text travels in pieces."""

READ_BYTES = 64 * 1024


@dataclass(frozen=True)
class Source:
    """Where the text comes from: ``text`` as a whole, or else ``pieces`` as they come; ``chars`` in
    all, where that is known."""

    text: str = ""
    pieces: Iterator[str] | None = None
    chars: int | None = None


def source_of(given: argparse.Namespace) -> Source:
    """What the command line says. Raises `ValueError` or `OSError` for a file that can't be read."""
    if given.out:
        sink_kind(given.out)
    if given.text == ["-"] or given.file == "-":
        return Source(pieces=as_it_comes(sys.stdin.fileno()))
    if given.file:
        return _file(Path(given.file))
    text = " ".join(given.text)
    if len(text) <= WHOLE_CHARS:
        return Source(text, chars=len(text))
    return Source(pieces=iter([text]), chars=len(text))


class Speaking:
    """One text on its way: into the speaker, or through ``given.out`` into a file."""

    def __init__(self, client: Client, options: SpeakOptions, given: argparse.Namespace) -> None:
        self._client = client
        self._options = options
        self._given = given
        self._stack = ExitStack()
        self._sink: Sink | None = None
        self._meter: Meter | None = None

    def speak(self, source: Source) -> None:
        """Speak it and do what was asked for with it. Raises `ChatterlineError`s, `OSError` and
        `ValueError` of the text or the file; Ctrl-C silences it."""
        try:
            with self._stack:
                if source.pieces is None:
                    self._whole(source)
                else:
                    self._in_pieces(source.pieces, source.chars)
        except SpeechError as error:
            if self._given.json and isinstance(error.event, Rejected) and error.event.request == "speak":
                _print(error.event)
            raise

    def _whole(self, source: Source) -> None:
        speech = self._client.speak(source.text, **self._options)
        if self._given.wait or self._given.json or self._given.out:
            self._follow(speech, source.chars)

    def _in_pieces(self, pieces: Iterator[str], chars: int | None) -> None:
        """One utterance after the other until the text is over; usually that is one."""
        feeder = _Feeder(pieces)
        while feeder.has_more():
            with self._client.utterance(**self._options) as speech:
                writer = threading.Thread(target=feeder.feed, args=(speech,), name="speak-text", daemon=True)
                writer.start()
                try:
                    self._follow(speech, chars)
                except SpeechCancelled:
                    if feeder.error is None:
                        raise
                writer.join()
                if feeder.error is not None:
                    raise feeder.error
                feeder.settle(speech)

    def _follow(self, speech: Speech, chars: int | None) -> None:
        """Take everything that happens until the end; Ctrl-C silences it."""
        try:
            self._open(chars)
            for event in speech.events():
                self._take(event)
        except KeyboardInterrupt:
            ending = speech.cancel()
            if self._given.json:
                _print(ending)
            raise
        except (OSError, ValueError):
            speech.abandon()
            raise
        if isinstance(speech.ending, Cancelled | Failed | Rejected):
            raise failure_of(speech.ending)

    def _open(self, chars: int | None) -> None:
        """Open the file; not before there is something to put into it."""
        if self._given.out and self._sink is None:
            self._sink = self._stack.enter_context(open_sink(self._given.out))
            if sys.stderr.isatty():
                self._meter = self._stack.enter_context(Meter(chars))

    def _take(self, event: Event | Sound) -> None:
        if isinstance(event, Sound):
            self._take_sound(event)
            return
        if self._given.json:
            _print(event)
        match event:
            case Progress(chars=chars) | Aligned(chars=(_, chars)) | Finished(chars=chars) if self._meter is not None:
                self._meter.chars(chars)
            case Failed(final=False):
                print(f"speak: characters {event.chars[0]} to {event.chars[1]}: {event.reason}", file=sys.stderr)
            case Rejected(field="id"):
                pass  # the text was ended after a long silence; its last event follows
            case Rejected():
                raise failure_of(event)
            case _:
                pass

    def _take_sound(self, sound: Sound) -> None:
        if self._given.json:
            _print(Audio(id=sound.id, first_sample=sound.first_sample, samples=sound.count))
        if self._sink is not None:
            self._sink.write(sound.pcm)
        if self._meter is not None:
            self._meter.sound(sound.count)


class _Feeder:
    """Writes pieces into utterances, and remembers what one that ended early has not taken."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._unsaid = ""
        self._kept = ""
        self._kept_from = 0
        self.error: Exception | None = None

    def has_more(self) -> bool:
        """Wait for text that is in no utterance yet."""
        if not self._unsaid:
            self._unsaid = next(self._pieces, "")
        return bool(self._unsaid)

    def feed(self, speech: Speech) -> None:
        """Write until the text is over, or the utterance. In a thread."""
        self._kept, self._kept_from = "", 0
        try:
            for piece in chain([self._unsaid], self._pieces):
                made = speech.made_chars
                self._kept, self._kept_from = self._kept[made - self._kept_from :] + piece, made
                speech.write(piece)
            speech.end()
        except SpeechError:
            return  # whoever follows the speech sees why
        except (ChatterlineError, OSError, ValueError) as error:
            self.error = error
            speech.abandon()

    def settle(self, speech: Speech) -> None:
        """The utterance is over and its writer has left: what was not taken is for the next one."""
        taken = speech.ending.chars if isinstance(speech.ending, Finished) else self._kept_from
        self._unsaid = self._kept[max(0, taken - self._kept_from) :]


def _print(event: Event) -> None:
    print(msgspec.json.encode(event).decode(), flush=True)


# --------------------------------------------------------------------------- where text comes from


def as_it_comes(descriptor: int) -> Iterator[str]:
    """UTF-8 from a pipe or terminal, each piece as soon as it is there. What is no UTF-8 is left out
    with a warning: too much has been said by then to refuse it."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    warned = False
    while True:
        data = os.read(descriptor, READ_BYTES)
        text = decoder.decode(data, final=not data)
        if "\ufffd" in text and not warned:
            print("speak: standard input is not UTF-8 throughout; what is not is left out", file=sys.stderr)
            warned = True
        if text := text.replace("\ufffd", " "):
            yield text
        if not data:
            return


def _file(path: Path) -> Source:
    if not stat.S_ISREG(path.stat().st_mode):
        return Source(pieces=as_it_comes(os.open(path, os.O_RDONLY)))
    chars = sum(len(piece) for piece in _pieces(path))
    if chars <= WHOLE_CHARS:
        return Source("".join(_pieces(path)), chars=chars)
    return Source(pieces=_pieces(path), chars=chars)


def _pieces(path: Path) -> Iterator[str]:
    """A file's text in pieces; raises `ValueError` where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with path.open("rb") as file:
        at = 0
        while True:
            data = file.read(READ_BYTES)
            try:
                piece = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: not UTF-8 near byte {at + error.start} ({error.reason}); "
                    "convert it, as with iconv -t utf-8"
                ) from None
            at += len(data)
            if piece:
                yield piece
            if not data:
                return
