"""The live view: what is known about the pipeline, drawn for a terminal of a given size.

A pure function: the same `Picture` and size give the same lines, so that it can be tested and looked
at without a pipeline. Nothing wraps; what does not fit is left out, the least important first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ipc.messages import Latency, ProcessState, QueueFill, StageShare, State, UtteranceStatus

WIDE, MIDDLE = 110, 80
"""From this width on there is room for memory and processor time, and for bars of full length."""

LINES_LEAST = 3
ORDER = ("supervisor", "gateway", "dispatcher", "t3", "s3gen", "player")
"""As text becomes sound."""

HOPS = {
    "accepted": "accepted",
    "first_tokens": "first tokens",
    "first_pcm": "first sound made",
    "loudspeaker": "at the ear",
    "listener": "at the listener",
}
QUEUES = {
    "text_waiting": "text",
    "utterances": "utterances",
    "credit_in_flight": "being made",
    "tokens_waiting": "tokens",
    "ring": "speaker ring",
    "stream_rings": "listeners",
    "device": "in the device",
}
COLORS = {"RUNNING": "green", "STARTING": "yellow", "BACKOFF": "yellow", "STOPPING": "cyan", "FATAL": "bold red"}


@dataclass(frozen=True)
class Picture:
    """Everything the view shows. ``state`` is None while the dispatcher does not answer."""

    phase: str
    address: str
    engine: str
    up_s: float
    processes: tuple[ProcessState, ...] = ()
    state: State | None = None
    lines: tuple[str, ...] = ()


def draw(picture: Picture, width: int, height: int) -> RenderableType:
    """At most ``height`` lines of at most ``width`` columns."""
    parts: list[tuple[int, list[RenderableType]]] = [
        (0, [_head(picture, width)]),
        (1, [_stages(picture, width)]),
        (5, [Text()]),
        (3, [_queues(picture.state, width)] if picture.state else []),
        (5, [Text()] if picture.state else []),
        (4, [_latencies(picture.state, width)] if picture.state else []),
        (5, [Text()]),
        (2, _speaking(picture.state, width)),
        (5, [Text()]),
    ]
    while len(parts) > 1 and sum(_rows(part) for _rank, part in parts) + LINES_LEAST > height:
        parts.remove(max(parts, key=lambda ranked: ranked[0]))
    used = sum(_rows(part) for _rank, part in parts)
    room = max(0, height - used)
    lines = [_clipped(line, width, "dim") for line in picture.lines[-room:]] if room else []
    return Group(*(item for _rank, part in parts for item in part), *lines)


def bar(share: float, cells: int) -> str:
    """``share`` of 1 as so many cells, in eighths."""
    eighths = round(max(0.0, min(1.0, share)) * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(cells, "·")[:cells]


def load_bar(busy: float, blocked: float, cells: int) -> Text:
    """Busy from the left, blocked after it, the rest (waiting for input) as dots."""
    filled = min(cells, round(busy * cells))
    held = min(cells - filled, round(blocked * cells))
    return Text.assemble(("█" * filled, "green"), ("▒" * held, "yellow"), ("·" * (cells - filled - held), "dim"))


def _rows(part: Sequence[RenderableType]) -> int:
    """Lines of a part: a table has one more for its head."""
    return sum(item.row_count + int(item.show_header) if isinstance(item, Table) else 1 for item in part)


def _clipped(text: str, width: int, style: str = "") -> Text:
    plain = "".join(char if char.isprintable() else " " for char in text)
    return Text(plain if len(plain) <= width else plain[: width - 1] + "…", style, no_wrap=True, overflow="ellipsis")


def _grid() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold", pad_edge=False)


def _head(picture: Picture, width: int) -> Text:
    state = picture.state
    health = [("healthy", "green")] if state and state.healthy else [("unhealthy", "bold red")] if state else []
    paused = [("  paused", "yellow")] if state and state.paused else []
    minutes, seconds = divmod(int(picture.up_s), 60)
    head = Text.assemble(
        ("chatterline", "bold"),
        f"  {picture.phase} {minutes // 60}:{minutes % 60:02d}:{seconds:02d}  ",
        *health,
        *paused,
        f"  {picture.address}  {picture.engine}",
        no_wrap=True,
        overflow="ellipsis",
    )
    head.truncate(width, overflow="ellipsis")
    return head


def _stages(picture: Picture, width: int) -> Table:
    table = _grid()
    table.add_column("stage", no_wrap=True, min_width=16)
    table.add_column("state", no_wrap=True)
    table.add_column("load █ busy ▒ held · idle" if width >= MIDDLE else "load", no_wrap=True)
    if width >= MIDDLE:
        table.add_column("busy", justify="right", no_wrap=True)
        table.add_column("streams", justify="right", no_wrap=True)
        table.add_column("restarts", justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("memory", justify="right", no_wrap=True)
        table.add_column("cpu", justify="right", no_wrap=True)
        table.add_column("pid", justify="right", no_wrap=True)
    shares = {share.worker: share for share in picture.state.stages} if picture.state else {}
    for process in sorted(picture.processes, key=lambda process: (ORDER.index(process.role), process.index)):
        table.add_row(*_stage(process, shares.get(f"{process.role}-{process.index}"), width))
    return table


def _stage(process: ProcessState, share: StageShare | None, width: int) -> list[Text | str]:
    """One row; a stage that keeps no account of its time has no bar."""
    kept = share is not None and share.busy + share.starved + share.blocked > 0
    cells = 25 if width >= MIDDLE else 10
    row: list[Text | str] = [
        f"{process.role} {process.index}",
        Text(process.state, COLORS.get(process.state, "")),
        load_bar(share.busy, share.blocked, cells) if share and kept else "",
    ]
    if width >= MIDDLE:
        restarts = Text(str(process.restarts), "yellow" if process.restarts else "")
        row += [f"{share.busy:.0%}" if share and kept else "", str(share.streams) if share and kept else "", restarts]
    if width >= WIDE:
        row += [f"{process.rss_bytes / 2**20:.0f} MB", f"{process.cpu_s:.1f} s", str(process.pid or "")]
    return row


def _queues(state: State, width: int) -> Table:
    table = _grid()
    table.add_column("queue", no_wrap=True, min_width=16)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("fill", no_wrap=True)
    if width >= MIDDLE:
        table.add_column("mean", justify="right", no_wrap=True)
        table.add_column("most", justify="right", no_wrap=True)
    for name, queue in state.queues.items():
        row: list[Text | str] = [QUEUES.get(name, name), _amount(queue.now, queue.unit), _fill(queue, width)]
        if width >= MIDDLE:
            row += [_amount(queue.mean, queue.unit), _amount(queue.most, queue.unit)]
        table.add_row(*row)
    return table


def _fill(queue: QueueFill, width: int) -> Text | str:
    if not queue.bound:
        return ""
    share = queue.now / queue.bound
    return Text(bar(share, 25 if width >= MIDDLE else 10), "red" if share > 0.95 else "cyan")


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f} s" if unit == "s" else f"{value:,.0f}"


def _latencies(state: State, width: int) -> Table:
    table = _grid()
    table.add_column("latency, ms", no_wrap=True, min_width=16)
    for name in ("last", "p50", "p99") if width < MIDDLE else ("last", "p50", "p90", "p99", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, latency in state.latencies.items():
        if latency.count:
            table.add_row(HOPS.get(name, name), *_figures(latency, width))
    return table


def _figures(latency: Latency, width: int) -> list[str]:
    if width < MIDDLE:
        return [f"{value:.1f}" for value in (latency.last_ms, latency.p50_ms, latency.p99_ms)]
    values = (latency.last_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms)
    return [*(f"{value:.1f}" for value in values), str(latency.count)]


def _speaking(state: State | None, width: int) -> list[RenderableType]:
    """Where sound goes, what is spoken with the heard part marked, and how much waits."""
    if state is None:
        return [Text("the dispatcher does not answer yet", "yellow")]
    note = str(state.player.get("note", ""))
    lines: list[RenderableType] = [_clipped(note, width, "yellow")] if note else []
    begun = [one for one in state.speaking if one.state == "speaking"]
    waiting = max(0, state.queued - len(begun))
    rest = f", {waiting} waiting" if waiting else ""
    if not begun:
        return [*lines, _clipped(f"silent{rest}", width, "dim")]
    current = next((one for one in begun if one.output == "speaker"), begun[0])
    what = f"{'speaking' if current.output == 'speaker' else 'streaming'} {current.heard_chars:,} of {current.chars:,}"
    others = f", {len(begun) - 1} more at once" if len(begun) > 1 else ""
    where = f"{what} characters, conversation {current.conversation}{others}{rest}"
    return [*lines, _clipped(where, width), _heard(current, width)]


def _heard(current: UtteranceStatus, width: int) -> Text:
    """A window of the text around what is being heard; ▌ stands where the ear is."""
    text = "".join(char if char.isprintable() else " " for char in current.text)
    at = max(0, min(len(text), current.heard_chars - current.text_from))
    start = max(0, at - (width - 1) // 2)
    heard, coming = text[start:at], text[at : start + width - 1]
    line = Text.assemble((heard, "green"), ("▌", "bold"), (coming, "dim"), no_wrap=True)
    line.truncate(width)  # characters that are two columns wide
    return line
