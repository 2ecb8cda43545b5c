"""Who the others wait for: the stage that bounds how fast speech comes, and the one setting that would move it.

Told from a window (`perf.window`), in shares of the time in which somebody wanted speech:

- **reader** (playback, or listeners): sound stood ready, a ring at least half as full as the pipeline works ahead, or
  s3gen waited for room in one. Where that is so most of the time everything else is quick enough, however busy.
- **t3**, **s3gen**, **dispatcher**: the stage's busiest worker worked. That one waits says nothing by itself: it waits
  for whoever is slow, upstream or down.
- **text** (its writer): t3 had nothing to do, nothing was made ahead, and no more text was there than a clause that is
  not complete.

The greatest share names the bottleneck. Where all are small the time goes into the **hand-overs** from one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from perf.window import Window
from pipeline.config import Config, Flow

MOST = 0.5
LEAST = 1 / 3
"""Below this share of the time nobody is waited for."""

CLAUSE_CHARS = 300
"""Text that may stand there though all that can be spoken is: no engine here takes more at once."""

STAGES = ("t3", "s3gen", "dispatcher")


@dataclass(frozen=True)
class Verdict:
    """Who is waited for (empty: nobody wanted speech), for what share of the time, and what would move it."""

    who: str
    share: float
    advice: str


def verdict(window: Window, config: Config | None) -> Verdict:
    """``config`` is the pipeline's; None: not known, defaults are named."""
    if not window.looks:
        return Verdict("", 0.0, "nothing was to be spoken")
    flow = (config or Config()).flow
    shares = _shares(window, flow)
    who = "reader" if shares["reader"] >= MOST else max(shares, key=lambda name: shares[name])
    if shares[who] < LEAST:
        return Verdict("hand-overs", 1.0 - max(shares.values()), _hand_overs(flow))
    match who:
        case "reader":
            advice = _reader(window, flow)
        case "text":
            advice = _text(flow)
        case "dispatcher":
            advice = _dispatcher(window)
        case _:
            advice = _stage(who, window, config or Config())
    return Verdict(who, shares[who], advice)


def _shares(window: Window, flow: Flow) -> dict[str, float]:
    """How long each was waited for, of the time in which somebody wanted speech."""
    wanted = 1.0 - window.idle
    half_s = window.ahead_limit_s / 2
    half_ring_s = min(flow.stream_ring_s / 2, half_s)
    shares = {role: found.busy / wanted for role in STAGES if (found := window.spent(role))}
    ready = window.mean(lambda look: look.sound_s >= (half_ring_s if look.listeners else half_s))
    waits = window.mean(lambda look: look.ahead_s < half_s and look.text_chars <= CLAUSE_CHARS)
    t3, s3gen = window.spent("t3"), window.spent("s3gen")
    shares["reader"] = max(ready, s3gen.blocked / wanted if s3gen else 0.0)
    shares["text"] = min(waits, (t3.starved - window.idle) / wanted if t3 else 0.0)
    return {who: min(1.0, max(0.0, share)) for who, share in shares.items()}


def _reader(window: Window, flow: Flow) -> str:
    ahead_s = window.mean(lambda look: look.ahead_s)
    if window.mean(lambda look: look.listeners) >= MOST:
        ring_s = flow.stream_ring_s
        return (
            f"flow.stream_ring_s {ring_s:g} → {2 * ring_s:g}: more waits for a listener while the last is on its way; "
            f"none takes it faster than it likes, and everything keeps {ahead_s:.1f} s ahead"
        )
    return f"none: playback takes it at its pace, and everything keeps {ahead_s:.1f} s ahead of the ear"


def _stage(role: str, window: Window, config: Config) -> str:
    stage = config.stages.t3 if role == "t3" else config.stages.s3gen
    workers, outputs = window.workers(role), window.mean(lambda look: look.outputs)
    if role == "t3" and outputs > workers * stage.max_batch:
        return (
            f"stages.t3.max_batch {stage.max_batch} → {2 * stage.max_batch}: {outputs:.0f} texts at once, "
            f"and {'one process takes' if workers == 1 else f'{workers} processes take'} {workers * stage.max_batch}"
        )
    if outputs > workers:
        return (
            f"stages.{role}.workers {workers} → {workers + 1}: {outputs:.0f} texts at once, which "
            f"another process can share"
        )
    if config.model.engine == "espeak":
        return f"stages.{role}.cpus [] → [0]: a processor of its own; one text is one process's work"
    return (
        f"stages.{role}.device {stage.device} → a quicker one, as cuda:0: a text is one process's work at a time, "
        f"so that more workers would not help"
    )


def _dispatcher(window: Window) -> str:
    outputs = window.mean(lambda look: look.outputs)
    return f"stages.dispatcher.cpus [] → [0]: a processor of its own; there is one for all {outputs:.0f} outputs"


def _text(flow: Flow) -> str:
    return (
        f"none for speed, its writer is slower than speech; flow.flush_ms {flow.flush_ms} → "
        f"{max(20, flow.flush_ms // 2)} speaks a clause that pauses sooner"
    )


def _hand_overs(flow: Flow) -> str:
    return (
        f"flow.ahead_s {flow.ahead_s:g} → {2 * flow.ahead_s:g}: more under way at once, so that a stage finds "
        f"something to do while a hand-over is on its way"
    )
