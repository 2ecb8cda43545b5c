"""What a language model is told of the conversation so far: what was asked, and what was heard of its answers."""

from __future__ import annotations

import base64
import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipc.chat_endpoint import Message

MOST_EXCHANGES = 100
MOST_AUDIO_BYTES = 25_000_000
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "m4a")


@dataclass(frozen=True)
class Question:
    """What is asked: words, a recording (``audio`` in ``audio_format``), or both."""

    text: str = ""
    audio: bytes = b""
    audio_format: str = "wav"

    def content(self) -> str | list[Message]:
        """As the endpoint takes it."""
        if not self.audio:
            return self.text
        sound = {"data": base64.b64encode(self.audio).decode(), "format": self.audio_format}
        parts: list[Message] = [{"type": "input_audio", "input_audio": sound}]
        return [*parts, {"type": "text", "text": self.text}] if self.text else parts


def spoken_question(path: Path, text: str = "") -> Question:
    """A recording as a question. Raises `OSError` and `ValueError`."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in AUDIO_FORMATS:
        raise ValueError(f"{path}: a spoken question is one of {', '.join(AUDIO_FORMATS)}, told by the file's name")
    if (size := path.stat().st_size) > MOST_AUDIO_BYTES or not size:
        raise ValueError(f"{path}: {size:,} bytes; a spoken question has 1 to {MOST_AUDIO_BYTES:,}")
    return Question(text, path.read_bytes(), kind)


class Memory:
    """A conversation. ``system`` is told to the model first, each time; the oldest exchanges are forgotten
    beyond ``most_exchanges``."""

    def __init__(self, system: str = "", most_exchanges: int = MOST_EXCHANGES) -> None:
        self._system = system
        self._exchanges: deque[tuple[str | list[Message], str]] = deque(maxlen=most_exchanges)

    def add(self, question: Question, heard: str) -> None:
        """A question, and what was heard of its answer."""
        self._exchanges.append((question.content(), heard.strip()))

    def messages(self, question: Question) -> list[Message]:
        """All of it and a new question.

        Of an answer of which nothing was heard nothing is told. Its question and the next are then told as one, since
        many models insist that the roles alternate.
        """
        told: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        for asked, heard in [*self._exchanges, (question.content(), "")]:
            if told and told[-1]["role"] == "user":
                told[-1] = {"role": "user", "content": _joined(told[-1]["content"], asked)}
            else:
                told.append({"role": "user", "content": asked})
            if heard:
                told.append({"role": "assistant", "content": heard})
        return told

    def save(self, path: Path) -> None:
        """Write it to a file of one's own, which `load` reads."""
        temporary = path.with_name(f".{path.name}.new")
        lines = [json.dumps({"question": asked, "heard": heard}) + "\n" for asked, heard in self._exchanges]
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote; nothing where there is no such file. Raises `OSError` and `ValueError`."""
        if not path.exists():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                exchange: Any = json.loads(line)
                self._exchanges.append((exchange["question"], str(exchange["heard"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no conversation that `speak --memory` wrote") from error


def _joined(first: str | Sequence[Message], second: str | Sequence[Message]) -> str | list[Message]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    parts: list[Message] = []
    for content in (first, second):
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts
