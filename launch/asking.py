"""What `speak` does instead of speaking: questions about the pipeline and orders to it."""

from __future__ import annotations

import argparse
import sys

import msgspec
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ipc.client_blocking import Client
from ipc.client_errors import RequestError
from ipc.messages import Setting, StatusReport, UtteranceStatus, VoiceList
from launch.view import HOPS, QUEUES, load_bar

PLAIN_WIDTH = 160
"""Columns where standard output is no terminal."""

LOAD_CELLS = 20


def ask(client: Client, given: argparse.Namespace) -> None:
    """Do the one thing that was asked for."""
    if given.status:
        report = client.status()
        _json(report) if given.json else _show(*status(report, client.to))
    elif given.voices is not None:
        listed = client.voices()
        _json(listed) if given.json else _show(*voices(listed, given.voices))
    elif given.ping:
        for worker, ms in client.ping().items():
            print(f"{worker}  {ms:.2f} ms")
    elif given.cancel is not None:
        cancel(client, given.cancel)
    elif given.add_voice is not None:
        added = client.add_voice(*given.add_voice)
        print(f"voice {added.voice}: {added.received_bytes:,} bytes")
    elif given.pause:
        client.pause()
    else:
        client.resume()


def cancel(client: Client, what: str) -> None:
    """Silence everything, an utterance by its id, or a conversation."""
    if what == "all":
        client.cancel(all=True)
        return
    try:
        client.cancel(id=what)
    except RequestError:
        client.cancel(conversation=what)


# --------------------------------------------------------------------------- tables


def status(report: StatusReport, to: str) -> list[RenderableType]:
    """The report for people."""
    health = ("healthy", "green") if report.healthy else ("unhealthy", "bold red")
    paused = [("  paused", "yellow")] if report.paused else []
    head = Text.assemble(("chatterline", "bold"), f" at {to}, up {report.uptime_s:.0f} s  ", health, *paused)
    parts: list[RenderableType] = [head, Text(report.engine_reason), Text(_player(report)), Text()]
    parts += [_stages(report), Text(), _queues(report), Text(), _latencies(report), Text(), _counters(report), Text()]
    parts += [line for one in report.speaking for line in _utterance(one)] or [Text("silent")]
    if report.queued > len(report.speaking):
        parts.append(Text(f"and {report.queued - len(report.speaking)} more"))
    return parts


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def _player(report: StatusReport) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in report.player.items() if value not in ("", 0))
    return f"player: {facts or 'not there yet'}"


def _stages(report: StatusReport) -> Table:
    table = _table("stage", "state", "load █ busy ▒ blocked · starved", "busy", "starved", "blocked", "streams",
                   "restarts", "memory", "cpu", "pid", left=3)  # fmt: skip
    for stage in report.stages:
        shares = [f"{share:.1%}" for share in (stage.busy, stage.starved, stage.blocked)]
        counts = [str(stage.streams), str(stage.restarts), f"{stage.rss_bytes / 2**20:.0f} MB", f"{stage.cpu_s:.1f} s"]
        load = load_bar(stage.busy, stage.blocked, LOAD_CELLS)
        table.add_row(Text(stage.worker), Text(stage.state), load, *shares, *counts, str(stage.pid or ""))
    return table


def _queues(report: StatusReport) -> Table:
    table = _table("queue", "now", "mean", "most", "bound", "unit")
    for name, queue in report.queues.items():
        figures = [f"{value:,.2f}" if value is not None else "" for value in
                   (queue.now, queue.mean, queue.most, queue.bound)]  # fmt: skip
        table.add_row(Text(QUEUES.get(name, name)), *figures, Text(queue.unit))
    return table


def _latencies(report: StatusReport) -> Table:
    table = _table("latency, ms", "last", "p50", "p90", "p99", "of")
    for name, latency in report.latencies.items():
        figures = (latency.last_ms, latency.p50_ms, latency.p90_ms, latency.p99_ms)
        table.add_row(Text(HOPS.get(name, name)), *(f"{figure:.1f}" for figure in figures), str(latency.count))
    return table


def _counters(report: StatusReport) -> Table:
    table = _table("counted", "times")
    for name, count in sorted(report.counters.items()):
        table.add_row(Text(name.replace("_", " ")), f"{count:,}")
    return table


def _utterance(one: UtteranceStatus) -> list[Text]:
    where = "to the speaker" if one.output == "speaker" else "to a listener"
    head = f"{one.state} {where}: id {one.id}, conversation {one.conversation}, priority {one.priority}, "
    text = "".join(char if char.isprintable() else " " for char in one.text)
    return [Text(f"{head}{one.heard_chars:,} of {one.chars:,} characters"), Text(f"  {text}", "dim")]


def voices(listed: VoiceList, wanted: str) -> list[RenderableType]:
    """Voices whose id, name or language holds ``wanted``, and the engine's settings."""
    table = _table("voice", "name", "language", "gender", left=4)
    wanted = wanted.casefold()
    found = [
        voice
        for voice in listed.voices
        if any(wanted in field.casefold() for field in (voice.id, voice.name, voice.language))
    ]
    for voice in found:
        mark = " (default)" if voice.id == listed.default else ""
        table.add_row(*(Text(field) for field in (voice.id + mark, voice.name, voice.language, voice.gender)))
    cloning = "takes reference recordings (--add-voice)" if listed.cloning else "takes no reference recordings"
    head = f"engine {listed.engine}: {len(listed.voices)} voices, {len(listed.languages)} languages; {cloning}"
    parts: list[RenderableType] = [Text(head), Text()]
    parts += [table] if found else [Text(f"no voice has {wanted!r} in its id, name or language")]
    if listed.settings:
        settings = _table("setting (--set)", "default", "allowed", "", left=4)
        for setting in listed.settings:
            row = (setting.name, str(setting.default), _allowed(setting), setting.help)
            settings.add_row(*(Text(cell) for cell in row))
        parts += [Text(), settings]
    return parts


def _allowed(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(setting.choices)
    if setting.least is None and setting.most is None:
        return {"bool": "true, false", "str": "a text"}.get(setting.kind, "a number")
    least = "" if setting.least is None else f"{setting.least:g}"
    return f"{least} to {setting.most:g}" if setting.most is not None else f"from {least}"


def _show(*parts: RenderableType) -> None:
    """Print for people: as wide as the terminal, or plain and wide into a file or pipe."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    for part in parts:
        console.print(part)


def _json(message: msgspec.Struct) -> None:
    print(msgspec.json.encode(message).decode())
