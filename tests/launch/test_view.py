"""The live view, drawn without a pipeline."""

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from ipc.messages import Latency, ProcessState, QueueFill, StageShare, State, UtteranceStatus
from launch.view import Picture, bar, draw, load_bar

SPEAKING = UtteranceStatus(
    id="a",
    conversation="main",
    output="speaker",
    priority="normal",
    state="speaking",
    chars=2400,
    heard_chars=1230,
    text="And so, my fellow Americans: ask not what your country can do for you, ask what you can do for it.",
    text_from=1180,
)
STATE = State(
    engine="espeak",
    engine_reason="engine espeak",
    uptime_s=12.0,
    paused=False,
    healthy=True,
    stages=(
        StageShare("dispatcher-0", "RUNNING", 0, 0, 0, 0),
        StageShare("t3-0", "RUNNING", 0.12, 0.5, 0.38, 2),
        StageShare("s3gen-0", "RUNNING", 0.4, 0.5, 0.1, 1),
    ),
    queues={
        "utterances": QueueFill(3, 1, 12, 256, "utterances"),
        "ring": QueueFill(3.9, 3.1, 4.0, 10.0, "s"),
        "device": QueueFill(0.02, 0.02, 0.03, None, "s"),
    },
    latencies={"first_pcm": Latency(12, 4.2, 5.9, 9.5, 4.1), "listener": Latency(0, 0, 0, 0, 0)},
    counters={},
    speaking=(SPEAKING,),
    queued=3,
    player={"note": "no device: speech goes into chatterline.wav"},
)
PROCESSES = (
    ProcessState("dispatcher", 0, 101, "RUNNING", 0, 45_000_000, 1.5),
    ProcessState("player", 0, 102, "FATAL", 3, 45_000_000, 1.5),
    ProcessState("s3gen", 0, 103, "RUNNING", 0, 45_000_000, 1.5),
    ProcessState("t3", 0, 104, "BACKOFF", 1, 45_000_000, 1.5),
)
PICTURE = Picture(
    phase="running",
    address="tcp://127.0.0.1:5570",
    engine="engine espeak (chatterbox: no GPU)",
    up_s=3754.2,
    processes=PROCESSES,
    state=STATE,
    lines=tuple(f"12:00:{number:02d}  supervisor    line {number} [bold]as it is[/]" for number in range(40)),
)


def drawn(picture: Picture, width: int = 120, height: int = 40, color: bool = False) -> list[str]:
    console = Console(
        file=io.StringIO(),
        record=True,
        width=width,
        height=height,
        force_terminal=color,
        color_system="truecolor" if color else None,
    )
    console.print(draw(picture, width, height), end="")
    return [line.rstrip() for line in console.export_text(styles=color).splitlines()]


def test_everything_is_shown_where_there_is_room() -> None:
    text = "\n".join(drawn(PICTURE))
    for part in (
        "running 1:02:34",
        "healthy",
        "tcp://127.0.0.1:5570",
        "engine espeak (chatterbox: no GPU)",
        "12%",
        "speaker ring",
        "3.90 s",
        "first sound made",
        "9.5",
        "speaking 1,230 of 2,400 characters, conversation main, 2 waiting",
        "no device: speech goes into chatterline.wav",
        "line 39 [bold]as it is[/]",
        "43 MB",
    ):
        assert part in text
    assert "at the listener" not in text  # nothing measured yet


def test_each_process_has_its_state_and_restarts() -> None:
    rows = {line.split()[0]: line for line in drawn(PICTURE) if line.split()[1:2] == ["0"]}
    assert "FATAL" in rows["player"]
    assert "BACKOFF" in rows["t3"]
    assert rows["t3"].split()[-6:] == ["1", "43", "MB", "1.5", "s", "104"]


@pytest.mark.parametrize(
    ("width", "height"), [(200, 60), (120, 40), (100, 30), (80, 24), (60, 15), (40, 12), (20, 6), (10, 3)]
)
def test_it_never_exceeds_the_terminal(width: int, height: int) -> None:
    for picture in (PICTURE, replace(PICTURE, state=None), replace(PICTURE, processes=(), lines=())):
        lines = drawn(picture, width, height)
        assert len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)


def test_what_matters_least_goes_first_on_a_low_terminal() -> None:
    text = "\n".join(drawn(PICTURE, height=16))
    assert "stage" in text
    assert "what your" in text
    assert "line 39" in text
    assert "first sound made" not in text


def test_the_heard_part_ends_at_the_mark_and_is_in_view() -> None:
    line = next(line for line in drawn(PICTURE, width=60) if "▌" in line)
    heard, coming = line.split("▌")
    assert SPEAKING.text[:50].endswith(heard)
    assert SPEAKING.text[50:].startswith(coming)
    assert len(coming) > 20


@pytest.mark.parametrize(("heard", "begins"), [(1180, "▌And so"), (5000, "for it.▌"), (0, "▌And so")])
def test_positions_outside_the_excerpt_stay_at_its_ends(heard: int, begins: str) -> None:
    current = UtteranceStatus(**{**{f: getattr(SPEAKING, f) for f in SPEAKING.__struct_fields__}, "heard_chars": heard})
    state = State(**{**{f: getattr(STATE, f) for f in STATE.__struct_fields__}, "speaking": (current,)})
    assert begins in "\n".join(drawn(replace(PICTURE, state=state)))


def test_control_characters_and_wide_ones_do_not_break_the_lines() -> None:
    current = UtteranceStatus(
        **{
            **{f: getattr(SPEAKING, f) for f in SPEAKING.__struct_fields__},
            "text": "\x1b[2J\n你好" * 60,
            "heard_chars": 1200,
        }
    )
    state = State(**{**{f: getattr(STATE, f) for f in STATE.__struct_fields__}, "speaking": (current,)})
    lines = drawn(replace(PICTURE, state=state, lines=("a\x1b[31mb",)), width=60)
    assert not any("\x1b" in line for line in lines)
    assert all(cell_len(line) <= 60 for line in lines)


def test_without_a_dispatcher_it_says_so_and_still_shows_the_processes() -> None:
    text = "\n".join(drawn(replace(PICTURE, state=None)))
    assert "the dispatcher does not answer yet" in text
    assert "BACKOFF" in text


def test_silence_and_pause_are_told() -> None:
    state = State(
        **{**{f: getattr(STATE, f) for f in STATE.__struct_fields__}, "speaking": (), "paused": True, "healthy": False}
    )
    text = "\n".join(drawn(replace(PICTURE, state=state)))
    assert "silent, 3 waiting" in text
    assert "unhealthy  paused" in text


def test_colors_are_there_with_color_and_not_without() -> None:
    assert any("\x1b[" in line for line in drawn(PICTURE, color=True))
    assert not any("\x1b[" in line for line in drawn(PICTURE))


def test_bars_fill_in_eighths_and_keep_their_length() -> None:
    assert [bar(share, 4) for share in (0, 0.25, 0.5, 1, 2, -1)] == ["····", "█···", "██··", "████", "████", "····"]
    assert bar(0.3, 10) == "███·······"
    assert bar(0.33, 10) == "███▎······"
    assert load_bar(0.5, 0.25, 8).plain == "████▒▒··"
    assert load_bar(0.9, 0.9, 10).plain == "█████████▒"
