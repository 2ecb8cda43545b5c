"""The bottleneck that is named is the one that is there; means and shares are those of the window."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import pytest

from ipc.client import AsyncClient
from ipc.messages import QueueFill, StageShare, State, UtteranceStatus
from perf import common, live, queues, running
from perf.bottleneck import verdict
from perf.common import PerfError
from perf.window import Fill, Spent, Standing, Window, between, mean, observe, spent
from pipeline.config import Config, load_config

ENGINE = "tests.engines.babble:ENGINE"
SPEAKER = {"model.engine": ENGINE, "player.output": "none", "player.pace": "realtime"}
TEXT = "What is said here goes on for a while, so that nobody waits for its end. "

# ------------------------------------------------------------------- what is between two reports


def stage(worker: str, spent_s: tuple[float, float, float], pid: int = 1) -> StageShare:
    total_s = sum(spent_s) or 1.0
    busy, starved, blocked = (seconds / total_s for seconds in spent_s)
    return StageShare(worker, "RUNNING", busy, starved, blocked, 1, pid=pid, over_s=sum(spent_s))


def state(uptime_s: float, levels: Mapping[str, float], *, outputs: tuple[str, ...] = ("speaker",)) -> State:
    names = ("text_waiting", "credit_in_flight", "tokens_waiting", "ring", "stream_rings", "device")
    return State(
        engine="babble", engine_reason="", uptime_s=uptime_s, paused=False, healthy=True,
        stages=(stage("t3-0", (uptime_s / 2, uptime_s / 2, 0.0)),),
        queues={name: QueueFill(levels.get(name, 0.0), 0.0, 9.0, 4.0, "s", uptime_s) for name in names},
        latencies={}, counters={}, queued=len(outputs), player={},
        speaking=tuple(
            UtteranceStatus(str(number), "default", output, "normal", "speaking", 9, 0, "")  # type: ignore[arg-type]
            for number, output in enumerate(outputs)
        ),
    )  # fmt: skip


def test_shares_are_those_of_the_time_between() -> None:
    found = spent(stage("t3-0", (1000.0, 3000.0, 0.0)), stage("t3-0", (1009.0, 3000.0, 1.0)))
    assert (found.busy, found.starved, found.blocked) == pytest.approx((0.9, 0.0, 0.1), abs=1e-6)
    assert found.over_s == pytest.approx(10)


def test_a_worker_that_was_replaced_meanwhile_counts_from_its_own_start() -> None:
    found = spent(stage("t3-0", (50.0, 50.0, 0.0), pid=1), stage("t3-0", (1.0, 3.0, 0.0), pid=2))
    assert (found.busy, found.over_s) == (0.25, 4.0)


def test_a_worker_that_told_nothing_meanwhile_has_no_shares() -> None:
    same = stage("t3-0", (1.0, 1.0, 0.0))
    assert spent(same, same) == Spent(0.0, 0.0, 0.0, 0.0)


def test_a_mean_is_that_of_the_time_between() -> None:
    before, after = QueueFill(0, 1.0, 9, None, "s", 90.0), QueueFill(0, 1.4, 9, None, "s", 100.0)
    assert mean(before, after) == pytest.approx(5.0)
    assert mean(None, after) == 1.4


def test_the_window_knows_what_stood_where_and_for_how_long_nobody_spoke() -> None:
    states = [state(11, {"ring": 3.0}), state(12, {"ring": 1.0, "tokens_waiting": 2.0}), state(15, {}, outputs=())]
    window = between(state(10, {}, outputs=()), state(20, {}, outputs=()), states)
    assert window.idle == pytest.approx(0.8)
    assert window.mean(lambda look: look.sound_s) == pytest.approx(2.0)
    assert window.mean(lambda look: look.ahead_s) == pytest.approx(3.0)
    assert window.queues["ring"].most == 3.0
    assert window.spent("t3") == Spent(0.5, 0.5, 0.0, 10.0)


def test_what_stands_there_is_told_for_each_output() -> None:
    now = state(12, {"stream_rings": 6.0, "tokens_waiting": 3.0}, outputs=("stream", "stream", "speaker", "speaker"))
    look = between(state(10, {}), now, [now]).looks[0]
    assert (look.outputs, look.listeners, look.sound_s, look.tokens_s) == (3, 2, 2.0, 1.0)


def test_a_dispatcher_that_was_restarted_makes_no_window() -> None:
    with pytest.raises(PerfError, match="restarted"):
        between(state(100, {}), state(3, {}), [])


# ------------------------------------------------------------------- who is waited for


def window(
    sound_s: float = 0.0, tokens_s: float = 0.0, chars: float = 1000.0, outputs: int = 1, listeners: int = 0,
    idle: float = 0.0, **stages: tuple[float, float, float],
) -> Window:  # fmt: skip
    """Ten seconds; stages as ``t3_0=(busy, starved, blocked)``."""
    given = {name.replace("_", "-"): Spent(*shares, 10.0) for name, shares in stages.items()}
    look = Standing(1.0 - idle, outputs, listeners, chars, tokens_s, sound_s)
    return Window(10.0, given, {"ring": Fill(1, 2, 10, "s")}, (look,) if idle < 1 else (), idle, 4.0, 8.0)


BUSY, WAITS, HELD = (0.95, 0.05, 0.0), (0.05, 0.95, 0.0), (0.05, 0.0, 0.95)


@pytest.mark.parametrize(
    ("found", "who"),
    [
        (window(t3_0=BUSY, s3gen_0=WAITS), "t3"),
        (window(tokens_s=4, t3_0=HELD, s3gen_0=BUSY), "s3gen"),
        (window(tokens_s=4, chars=200, t3_0=WAITS, s3gen_0=BUSY), "s3gen"),  # all that there is, is made
        (window(sound_s=4, t3_0=HELD, s3gen_0=WAITS), "reader"),
        (window(sound_s=4, t3_0=HELD, s3gen_0=(0.9, 0.1, 0.0)), "reader"),  # works much, but in time
        (window(sound_s=2, listeners=1, t3_0=HELD, s3gen_0=HELD), "reader"),
        (window(chars=20, t3_0=WAITS, s3gen_0=WAITS), "text"),
        (window(chars=20, t3_0=(0.3, 0.7, 0.0), s3gen_0=(0.6, 0.4, 0.0)), "text"),
        (window(chars=20, idle=0.7, t3_0=(0.28, 0.72, 0.0), s3gen_0=WAITS), "t3"),  # whenever it was wanted
        (window(t3_0=WAITS, t3_1=BUSY, s3gen_0=WAITS), "t3"),  # one text has to do with one of them
        (window(t3_0=WAITS, s3gen_0=WAITS, dispatcher_0=BUSY), "dispatcher"),
        (window(t3_0=WAITS, s3gen_0=WAITS, dispatcher_0=WAITS), "hand-overs"),
        (window(idle=1.0, t3_0=WAITS, s3gen_0=WAITS), ""),
    ],
)  # fmt: skip
def test_who_is_waited_for_is_named(found: Window, who: str) -> None:
    assert verdict(found, Config()).who == who


@pytest.mark.parametrize(
    ("found", "settings", "advice"),
    [
        (window(t3_0=BUSY), [], "stages.t3.device auto →"),
        (window(t3_0=BUSY), ["model.engine=espeak"], "stages.t3.cpus [] →"),
        (window(t3_0=BUSY, outputs=9), [], "stages.t3.workers 1 → 2"),
        (window(t3_0=BUSY, t3_1=BUSY, outputs=9), ["stages.t3.workers=2"], "stages.t3.workers 2 → 3"),
        (window(t3_0=BUSY, outputs=9), ["stages.t3.max_batch=4"], "stages.t3.max_batch 4 → 8"),
        (window(s3gen_0=BUSY), ["stages.s3gen.device=cpu"], "stages.s3gen.device cpu →"),
        (window(s3gen_0=BUSY, outputs=40), [], "stages.s3gen.workers 1 → 2"),
        (window(sound_s=3.5), [], "none: playback takes it at its pace, and everything keeps 3.5 s ahead"),
        (window(sound_s=3.5, listeners=1), ["flow.stream_ring_s=3"], "flow.stream_ring_s 3 → 6"),
        (window(chars=20, t3_0=WAITS), ["flow.flush_ms=300"], "flow.flush_ms 300 → 150"),
        (window(dispatcher_0=BUSY), [], "stages.dispatcher.cpus [] → [0]"),
        (window(), [], "flow.ahead_s 4 → 8"),
    ],
)  # fmt: skip
def test_one_setting_that_would_move_it_is_named_with_its_value(
    found: Window, settings: list[str], advice: str
) -> None:
    assert advice in verdict(found, load_config(None, settings)).advice


async def reads_slowly(client: AsyncClient) -> None:
    """A listener at a third of the pace of speech."""
    speech = await client.speak(TEXT * 20, output="stream")
    async for sound in speech.sounds():
        await asyncio.sleep(3 * sound.count / 24_000)


async def writes_slowly(client: AsyncClient) -> None:
    """A few words every now and then: half the pace of speech, or less."""

    async def words() -> AsyncIterator[str]:
        while True:
            yield "And now? "
            await asyncio.sleep(1.2)

    await (await client.speak_stream(words())).wait()


async def writes_enough(client: AsyncClient) -> None:
    await (await client.speak(TEXT * 50)).wait()


async def said(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wait until the live view's lines say so."""
    printed = ""
    async with asyncio.timeout(20):
        while what not in printed:
            printed += capsys.readouterr().out
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("throttle", "cases"),
    [
        ({"model.options.token_delay_ms": 80}, {"t3": writes_enough}),
        ({"model.options.render_delay_ms": 80}, {"s3gen": writes_enough}),
        ({}, {"reader": reads_slowly, "text": writes_slowly}),
    ],
    ids=["t3", "s3gen", "around"],
)
async def test_the_bottleneck_named_is_the_one_that_was_made(
    throttle: Mapping[str, float],
    cases: Mapping[str, Callable[[AsyncClient], Awaitable[None]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with running.pipeline("", {**SPEAKER, **throttle}) as place:
        async with AsyncClient(place.to, buffer_s=0.5) as client:
            for who, workload in cases.items():
                watching = asyncio.create_task(live.watch(place.to)) if who == "t3" else None
                window = await observe(client, workload(client), 2.5)
                found = verdict(window, running.config_of(place))
                assert found.who == who, (found, window)
                assert found.share > 0.6
                if watching is not None:
                    await said("t3 is waited for", capsys)
                    watching.cancel()
                await client.cancel(all=True)


def test_the_picture_is_drawn_from_the_report_alone() -> None:
    pytest.importorskip("matplotlib")
    seen = window(sound_s=4, t3_0=HELD, s3gen_0=WAITS, player_0=BUSY)
    rows = {
        "who is waited for": [queues.verdict_row("steady", seen, verdict(seen, Config()))],
        "steady: stages": queues.stage_rows(seen),
        "steady: queues": queues.queue_rows(seen),
    }
    figure = common.blank()
    queues.draw(json.loads(json.dumps({"rows": rows})), figure)
    left, right = figure.axes
    assert left.get_title(loc="left") == "steady: the bottleneck is reader"
    assert [label.get_text() for label in left.get_yticklabels()] == ["t3-0", "s3gen-0", "player-0"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["ring"]


def test_what_every_output_may_have_is_bounded_for_as_many_as_there_were() -> None:
    seen = replace(window(outputs=5), queues={"tokens_waiting": Fill(10, 12, 4, "s"), "ring": Fill(5, 6, 10, "s")})
    tokens, ring = queues.queue_rows(seen)
    assert (tokens["bound"], tokens["mean_of_bound_%"]) == (20, 50)
    assert (ring["bound"], ring["mean_of_bound_%"]) == (10, 50)


# ------------------------------------------------------------------- the live view


def test_the_live_view_shows_the_last_seconds_and_who_is_waited_for() -> None:
    seen = live.Seen()
    assert live.picture(seen, "tcp://here").state is None
    for number in range(150):
        seen.add(state(100 + number / 10, {"ring": 4.0 if number > 20 else 0.0}))
    picture = live.picture(seen, "tcp://here")
    assert seen.window is not None
    assert live.WINDOW_S <= seen.window.seconds < live.WINDOW_S + 0.5
    assert picture.lines[-1].startswith("reader is waited for (100%)")
    assert [(process.role, process.index) for process in picture.processes] == [("t3", 0)]
    assert picture.state is not None
    assert picture.state.queues["ring"].most == 4.0


def test_the_live_view_begins_anew_with_a_new_dispatcher() -> None:
    seen = live.Seen()
    for uptime_s in (100.0, 101.0, 0.5):
        seen.add(state(uptime_s, {}))
    assert seen.window is None
    seen.add(state(1.5, {}))
    assert seen.window is not None
    assert seen.window.seconds == 1.0


async def test_a_workload_that_is_over_too_soon_makes_no_window() -> None:
    class Answers:
        async def ping(self) -> dict[str, float]:
            return {}

        async def status(self) -> State:
            return state(10, {})

        async def watch(self, every_ms: int, *, timeline: bool) -> AsyncIterator[State]:
            await asyncio.Event().wait()
            yield state(every_ms, {})

    async def nothing() -> None:
        return

    with pytest.raises(PerfError, match="too soon"):
        await observe(Answers(), nothing(), 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--watch", "--set", "flow.ahead_s=2"], "--watch"), (["--set", "flow.ahead=2"], "ahead_s")],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["queues", *options])
    with pytest.raises(SystemExit):
        queues.main()
    assert said in capsys.readouterr().err


def test_what_is_set_on_the_command_line_goes_above_what_the_script_wants() -> None:
    parser = common.arguments("What it is.")
    running.takes_settings(parser)
    given = parser.parse_args(["--set", "player.pace=free", "flow.ahead_s=2", "--set", "model.options.load_s=1"])
    settings = running.asked(given, player__output="none", player__pace="realtime")
    assert settings == {
        "model.engine": "espeak", "player.output": "none", "player.pace": "free", "flow.ahead_s": "2",
        "model.options.load_s": "1",
    }  # fmt: skip
    config = running.config_of(running.Place("tcp://here", settings))
    assert config is not None
    assert (config.flow.ahead_s, config.player.pace, config.model.options) == (2.0, "free", {"load_s": 1})
    assert running.config_of(running.Place("tcp://there")) is None
    command = common.contents("queues", given, {}, {}, {}, {})["command"]
    assert "--set player.pace=free flow.ahead_s=2 model.options.load_s=1" in command
