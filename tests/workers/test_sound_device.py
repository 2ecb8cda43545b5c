"""The sound card comes, goes, hangs and breaks, without a sound card."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ipc.ring import Arena
from tests.workers.pulse import counter_signal, until
from tests.workers.sound_card import Card, Stream, device
from workers import sound_device, sound_stream
from workers.playback import Playback, State
from workers.sound import SoundError
from workers.sound_device import DeviceOutput
from workers.sound_stream import LEAD_S, find_device

BLOCK = 512
LEAD_BLOCKS = -(-round(LEAD_S * 24_000) // BLOCK)


class Setup:
    def __init__(self, card: Card, wanted: str | int = "default") -> None:
        self.card = card
        self.arena = Arena.create(48_000, 64, 0)
        self.control = self.arena.control(0)
        self.control.grant(1)
        self.writer = self.arena.writer(0, 1)
        self.playback = Playback(self.arena.reader(0), BLOCK, 24_000, 2880)
        self.output = DeviceOutput(lambda: card, self.playback, wanted, BLOCK)

    def say(self, samples: int) -> None:
        self.writer.begin_span(1, 0)
        assert self.writer.write(counter_signal(self.writer.written, samples)) == samples
        self.writer.complete()

    @property
    def stream(self) -> Stream:
        return self.card.streams[-1]

    def tend_until(self, condition: object, what: str) -> None:
        def tended() -> object:
            self.output.tend()
            return condition()  # type: ignore[operator]

        until(tended, what)

    def tend_until_open(self, streams: int) -> None:
        self.tend_until(
            lambda: len(self.card.streams) == streams and self.output.status().available, "the device is open"
        )


@pytest.fixture(autouse=True)
def ordinary_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's threads stay what they are."""
    monkeypatch.setattr(sound_stream, "_hasten", lambda: True)


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup(Card(device("USB Speaker")))
    yield made
    made.arena.close()


def test_a_device_is_found_by_number_name_part_of_a_name_or_as_default() -> None:
    card = Card(device("Microphone", channels=()), device("HDMI 0"), device("USB Speaker"), device("USB"))
    card.default.device = [0, 2]
    assert find_device(card, 1).name == "HDMI 0"
    assert find_device(card, "1").name == "HDMI 0"
    assert find_device(card, "hdmi").name == "HDMI 0"
    assert find_device(card, "usb").name == "USB", "a whole name goes before part of one"
    assert find_device(card, "default").name == "USB Speaker"
    card.default.device = [-1, -1]
    assert find_device(card, "default").name == "HDMI 0"


@pytest.mark.parametrize("wanted", ["Bluetooth", 0, 7, "9", -1])
def test_an_unknown_device_is_refused_with_those_there_are(wanted: str | int) -> None:
    card = Card(device("Microphone", channels=()), device("HDMI 0"), device("USB Speaker"))
    with pytest.raises(SoundError, match=r"no output device .*player\.device .*1 HDMI 0, 2 USB Speaker"):
        find_device(card, wanted)


def test_no_device_at_all_is_said_so() -> None:
    with pytest.raises(SoundError, match="no output device"):
        find_device(Card(device("Microphone", channels=())), "default")


@pytest.mark.parametrize(
    ("rates", "channels", "expected"),
    [
        ((24_000, 48_000), (1, 2), (24_000, 1)),
        ((24_000, 48_000), (2,), (24_000, 2)),
        ((44_100,), (1,), (44_100, 1)),
        ((44_100, 48_000), (6,), (48_000, 6)),
    ],
)
def test_24_khz_and_mono_are_taken_where_the_device_knows_them(
    rates: tuple[int, ...], channels: tuple[int, ...], expected: tuple[int, int]
) -> None:
    found = find_device(Card(device("x", rates, channels)), "default")
    assert (found.rate_hz, found.channels) == expected


def test_a_device_that_takes_nothing_is_refused() -> None:
    card = Card(device("x", rates=(48_000,), channels=(2,)))
    card.check_output_settings = lambda *_, **__: (_ for _ in ()).throw(card.PortAudioError("busy"))  # type: ignore[method-assign]
    with pytest.raises(SoundError, match="'x' takes no sound"):
        find_device(card, 0)


def test_silence_first_then_every_sample_as_it_is(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.say(5000)
    assert not setup.stream.tick(LEAD_BLOCKS).any()
    assert setup.control.read == 0
    assert np.array_equal(setup.stream.tick(10)[:5000], counter_signal(0, 5000))
    facts = setup.output.facts
    assert (facts.output, facts.device, facts.device_rate_hz, facts.block_samples) == (
        "speaker",
        "USB Speaker",
        24_000,
        512,
    )
    assert facts.latency_ms == 64.0


def test_the_ear_hears_when_portaudio_says_after_two_callbacks(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.say(10_000)
    setup.stream.tick(LEAD_BLOCKS)
    ahead_ms = []
    for _ in range(4):
        setup.stream.tick()
        state = setup.control.reader_state()
        ahead_ms.append(round((state.dac_ns - state.callback_ns) / 1e6))
        assert state.latency_ns == state.dac_ns - state.callback_ns
    assert ahead_ms == [64, 64, 50, 50]


def test_without_privilege_the_device_buffers_more(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_stream, "_hasten", lambda: False)
    setup.output.open(patient=False)
    assert setup.stream.latency == 0.1


def test_a_lost_device_is_opened_again_and_speech_waits_for_it(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.say(20_000)
    setup.stream.tick(LEAD_BLOCKS + 4)
    lost = setup.stream
    setup.card.devices.clear()
    lost.end()
    setup.tend_until(lambda: not setup.output.status().available, "the loss is noticed")
    assert "has gone" in setup.output.status().note
    setup.tend_until(lambda: "no output device" in setup.output.status().note, "it tries in vain")
    assert setup.control.reader_state().state == State.NO_DEVICE
    assert setup.control.read == 4 * BLOCK
    assert lost.closed
    setup.card.devices.append(device("USB Speaker"))
    setup.tend_until_open(2)
    assert setup.output.status().reopens == 1
    assert setup.output.status().note == ""
    assert not setup.stream.tick(LEAD_BLOCKS).any()
    sound = setup.stream.tick(40)
    expected = counter_signal(4 * BLOCK, 20_000 - 4 * BLOCK)
    assert np.array_equal(sound[120 : len(expected)], expected[120:])
    assert np.all(sound[:120] < expected[:120]), "faded in where it broke off"


def test_a_device_that_returns_with_another_rate_is_resampled_for(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.card.devices[0] = device("USB Speaker", rates=(48_000,), channels=(2,))
    setup.stream.end()
    setup.tend_until_open(2)
    assert (setup.output.facts.device_rate_hz, setup.output.facts.block_samples) == (48_000, 1024)
    assert setup.stream.channels == 2
    setup.say(5000)
    sound = setup.stream.tick(40)
    assert np.sum(sound != 0) > 9000


def test_a_hung_server_blocks_nobody_and_its_old_stream_takes_nothing_more(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_stream, "HUNG_S", 0.05)
    monkeypatch.setattr(sound_device, "HUNG_S", 0.05)
    setup.output.open(patient=False)
    setup.say(20_000)
    setup.stream.tick(LEAD_BLOCKS + 4)
    old = setup.stream
    setup.card.server_answers.clear()
    setup.tend_until(lambda: "does not answer" in setup.output.status().note, "closing hangs")
    assert not old.tick(3).any(), "a late callback of the stream given up"
    assert setup.control.read == 4 * BLOCK
    setup.control.discard_below(2)
    setup.output.tend()
    assert setup.control.read == 20_000, "a cancel is heeded all the same"
    setup.card.server_answers.set()
    setup.tend_until_open(2)
    assert old.closed


def test_portaudio_that_does_not_start_again_is_tried_again(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.card.trouble = "no start"
    setup.stream.end()
    setup.tend_until(lambda: "no start" in setup.output.status().note, "it fails")
    setup.card.trouble = ""
    setup.tend_until_open(2)


def test_a_server_that_hangs_from_the_start_is_given_up_and_does_not_keep_the_process(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_device, "_OPEN_TIMEOUT_S", 0.05)
    left: list[object] = []
    monkeypatch.setattr(sound_device.atexit, "unregister", left.append)
    setup.card.server_answers.clear()
    with pytest.raises(SoundError, match="does not answer"):
        setup.output.open(patient=False)
    assert left == [setup.card._exit_handler]
    setup.card.server_answers.set()


def test_underflows_add_up_over_streams(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.stream.tick(2, underflow=True)
    assert setup.output.status().underflows == 0, "in the silence at the start nobody hears them"
    setup.stream.tick(LEAD_BLOCKS)
    setup.stream.tick(2, underflow=True)
    setup.stream.end()
    setup.tend_until_open(2)
    setup.stream.tick(LEAD_BLOCKS)
    setup.stream.tick(1, underflow=True)
    assert setup.output.status().underflows == 3


def test_what_breaks_the_callback_is_raised_in_the_players_loop(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.output.open(patient=False)
    monkeypatch.setattr(setup.playback, "fill", lambda out: 1 / 0)
    setup.stream.tick(LEAD_BLOCKS + 1)
    with pytest.raises(ZeroDivisionError):
        setup.output.tend()


def test_what_breaks_opening_is_raised_too(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.card, "query_devices", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        setup.output.open(patient=True)


def test_the_first_opening_fails_at_once_and_a_restarted_players_waits(setup: Setup) -> None:
    setup.card.trouble = "Device unavailable"
    with pytest.raises(SoundError, match="cannot be opened: Device unavailable"):
        setup.output.open(patient=False)
    setup.output.open(patient=True)
    assert not setup.output.status().available
    setup.card.trouble = ""
    setup.tend_until_open(1)
    assert setup.output.status().reopens == 0


def test_closing_fades_then_plays_silence_until_all_was_heard(setup: Setup) -> None:
    setup.output.open(patient=False)
    setup.say(20_000)
    setup.stream.tick(LEAD_BLOCKS + 4)
    stream, stop = setup.stream, threading.Event()

    def card() -> None:
        while not stop.wait(0.02) and stream.active:
            stream.tick()

    thread = threading.Thread(target=card)
    before = len(stream.heard)
    thread.start()
    setup.output.close()
    stop.set()
    thread.join()
    tail = np.concatenate(stream.heard[before:])
    assert tail[:120].all()
    assert not tail[120:].any()
    assert len(tail) > 0.1 * 24_000
    assert stream.closed
    assert setup.control.read == 4 * BLOCK
