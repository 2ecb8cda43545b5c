"""The t3 stage: text segments to tokens, with whatever engine is configured.

`TokenStreams` is the bookkeeping between messages and a `TokenModel`: it joins histories, admits
segments, holds back streams whose credit is used up and numbers what the model makes. It knows no
sockets and no time. The rest is the process around it: receive → step → send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ipc.messages import (
    CancelStream,
    Generate,
    Grant,
    History,
    Internal,
    StreamFailed,
    TokenChunk,
    Welcome,
)
from pipeline.engines.base import (
    EngineError,
    Segment,
    StreamError,
    TokenModel,
    TokenStep,
    load_engine,
)
from workers.life import Life, end, run
from workers.worker import Worker, engine_config

IDLE_S = 1.0


@dataclass
class _Stream:
    """A segment being generated. ``tokens`` and ``seconds`` count from the stream's start, history
    included."""

    request: Generate
    credit_s: float
    seconds: float
    tokens: int = 0
    history: list[bytes] = field(default_factory=list)
    admitted: bool = False
    paused: bool = False

    @property
    def complete(self) -> bool:
        """Whether all of the history has arrived."""
        return self.tokens >= self.request.history_tokens


class TokenStreams:
    """Everything t3 holds. A stream makes tokens while its speech is below its credit; one chunk may
    overshoot. Segments beyond the model's batch wait their turn."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self._most = max(1, model.facts.max_batch)
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[int] = deque()
        self._admitted = 0
        self.counters = {"chunks": 0, "tokens": 0, "steps": 0, "failed": 0}

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def runnable(self) -> bool:
        """Whether a step would make something."""
        return any(stream.admitted and not stream.paused for stream in self._streams.values())

    @property
    def blocked(self) -> bool:
        """Whether everything held waits for credit."""
        return not self.runnable and any(stream.paused for stream in self._streams.values())

    def handle(self, message: Internal) -> list[Internal]:
        """Take one message of the dispatcher; what to answer."""
        match message:
            case Welcome():
                for number in list(self._streams):
                    self._drop(number)
                return []
            case Generate():
                return self._generate(message)
            case History():
                return self._history(message)
            case Grant(number, credit_s):
                if stream := self._streams.get(number):
                    stream.credit_s = credit_s
                    self._balance(number, stream)
                return []
            case CancelStream(number):
                self._drop(number)
                return self._admit_waiting()
            case _:
                return []

    def step(self) -> list[Internal]:
        """One step of the model over all streams that may go on; what it made."""
        made: list[Internal] = []
        self.counters["steps"] += 1
        for one in self._model.step():
            stream = self._streams.get(one.stream)
            if stream is None:
                continue
            if isinstance(one, StreamError):
                made += self._fail(one.stream, one.reason)
            else:
                made += self._made(one, stream)
        return made + self._admit_waiting()

    def _generate(self, request: Generate) -> list[Internal]:
        if request.stream in self._streams:
            return self._fail(request.stream, f"stream {request.stream} is already being generated")
        stream = _Stream(request, request.credit_s, request.history_s)
        self._streams[request.stream] = stream
        return self._enqueue(request.stream) if stream.complete else []

    def _history(self, piece: History) -> list[Internal]:
        stream = self._streams.get(piece.stream)
        if stream is None:
            return []
        if stream.complete or piece.first_token != stream.tokens:
            return self._fail(
                piece.stream, f"history begins at token {piece.first_token}, {stream.tokens} were the next"
            )
        stream.history.append(piece.data)
        stream.tokens += piece.tokens
        return self._enqueue(piece.stream) if stream.complete else []

    def _enqueue(self, number: int) -> list[Internal]:
        self._waiting.append(number)
        return self._admit_waiting()

    def _admit_waiting(self) -> list[Internal]:
        failed: list[Internal] = []
        while self._waiting and self._admitted < self._most:
            number = self._waiting.popleft()
            failed += self._admit(number, self._streams[number])
        return failed

    def _admit(self, number: int, stream: _Stream) -> list[Internal]:
        wanted = stream.request
        segment = Segment(
            text=wanted.text,
            boundary=wanted.boundary,
            voice=wanted.voice,
            language=wanted.language,
            speed=wanted.speed,
            seed=wanted.seed,
            settings=dict(wanted.settings),
        )
        history, stream.history = b"".join(stream.history), []
        try:
            self._model.admit(number, segment, history, wanted.history_tokens)
        except EngineError as error:
            return self._fail(number, str(error))
        stream.admitted = True
        self._admitted += 1
        self._balance(number, stream)
        return []

    def _made(self, step: TokenStep, stream: _Stream) -> list[Internal]:
        first, stream.tokens = stream.tokens, stream.tokens + step.tokens
        stream.seconds += step.seconds
        if step.final:
            self._forget(step.stream)
        else:
            self._balance(step.stream, stream)
        if not (step.tokens or step.final or step.note):
            return []  # the engine only thought
        self.counters["chunks"] += 1
        self.counters["tokens"] += step.tokens
        return [
            TokenChunk(
                stream=step.stream,
                first_token=first,
                tokens=step.tokens,
                data=step.data,
                seconds=step.seconds,
                alignment=step.alignment,
                final=step.final,
                note=step.note,
            )
        ]

    def _balance(self, number: int, stream: _Stream) -> None:
        """Pause or resume by what the stream has made and may have made."""
        used_up = stream.seconds >= stream.credit_s
        if stream.admitted and used_up != stream.paused:
            stream.paused = used_up
            (self._model.pause if used_up else self._model.resume)(number)

    def _fail(self, number: int, reason: str) -> list[Internal]:
        self._drop(number)
        self.counters["failed"] += 1
        return [StreamFailed(number, reason)]

    def _drop(self, number: int) -> None:
        self._forget(number)
        self._model.release(number)

    def _forget(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        if stream.admitted:
            self._admitted -= 1
        elif number in self._waiting:
            self._waiting.remove(number)


def work(life: Life) -> None:
    """Load the engine's token half and generate until told to leave."""
    config = life.config()
    worker = Worker(life, "t3", config)
    worker.report("loading", config.supervise.start_timeout_s)
    engine = load_engine(config.model.engine)
    model = engine.tokens(engine_config(config, config.stages.t3), worker.report)
    try:
        worker.ready(model.facts)
        streams = TokenStreams(model)
        while not worker.leaving:
            wait_s = 0.0 if streams.runnable else IDLE_S
            for message in worker.receive(wait_s, "blocked" if streams.blocked else "starved"):
                worker.send(streams.handle(message))
            if streams.runnable:
                worker.send(streams.step())
            worker.load(len(streams), streams.counters)
        worker.leave()
    finally:
        model.close()


if __name__ == "__main__":
    end(run("t3", work))
