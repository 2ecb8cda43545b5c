"""Which output the configuration means, what falls back to what, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipc.ring import Arena
from pipeline.config import Player
from tests.workers.sound_card import Card, device
from workers import sound_choice, sound_stream
from workers.playback import Playback
from workers.sound import Output, SoundError
from workers.sound_choice import describe, open_output
from workers.sound_device import DeviceOutput
from workers.sound_paced import PacedOutput


class Setup:
    def __init__(self, folder: Path) -> None:
        self.memory = folder / "player-output"
        self.arena = Arena.create(48_000, 64, 0)
        self.outputs: list[Output] = []

    def open(self, output: str, device: str | int = "default") -> Output:
        playback = Playback(self.arena.reader(0), 512, 24_000, 2880)
        self.outputs.append(open_output(Player(output=output, device=device), playback, self.memory))
        return self.outputs[-1]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sound_stream, "_hasten", lambda: True)
    monkeypatch.setattr(sound_stream, "LEAD_S", 0.0)
    made = Setup(tmp_path)
    yield made
    for output in made.outputs:
        output.close()
    made.arena.close()


def use(monkeypatch: pytest.MonkeyPatch, card: Card | SoundError) -> None:
    def load() -> Card:
        if isinstance(card, SoundError):
            raise card
        return card

    monkeypatch.setattr(sound_choice, "load_backend", load)


NO_PORTAUDIO = SoundError("no PortAudio (PortAudio library not found): apt install libportaudio2")


def test_auto_takes_the_sound_card(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Card(device("USB Speaker")))
    output = setup.open("auto")
    assert isinstance(output, DeviceOutput)
    assert (output.facts.output, output.facts.device, output.facts.note) == ("speaker", "USB Speaker", "")


@pytest.mark.parametrize(
    ("card", "wanted", "because"),
    [
        (NO_PORTAUDIO, "default", "apt install libportaudio2"),
        (Card(), "default", "no output device"),
        (Card(device("HDMI 0")), "USB", "no output device 'USB'"),
    ],
)
def test_auto_falls_back_to_a_file_and_says_why_and_what_to_do(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, card: Card | SoundError, wanted: str, because: str
) -> None:
    use(monkeypatch, card)
    output = setup.open("auto", wanted)
    assert isinstance(output, PacedOutput)
    note = output.facts.note
    assert because in note
    assert "speech goes into chatterline.wav" in note
    assert "--set player.output=none" in note
    assert "\n" not in note
    assert Path("chatterline.wav").stat().st_size == 44
    assert output.status().note == note


@pytest.mark.parametrize("card", [NO_PORTAUDIO, Card()])
def test_speaker_does_not_fall_back(setup: Setup, monkeypatch: pytest.MonkeyPatch, card: Card | SoundError) -> None:
    use(monkeypatch, card)
    with pytest.raises(SoundError, match=r"player\.output: no "):
        setup.open("speaker")
    assert not setup.memory.exists()


def test_a_restarted_player_keeps_the_output_that_was_chosen(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    use(monkeypatch, card)
    chosen = setup.open("auto")
    note = chosen.facts.note
    chosen.close()
    card.devices.append(device("USB Speaker"))
    card._known = card.devices
    again = setup.open("auto")
    assert (again.facts.output, again.facts.note) == ("wav:chatterline.wav", note)


def test_a_restarted_player_waits_for_a_device_that_has_gone(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(device("USB Speaker"))
    use(monkeypatch, card)
    setup.open("auto").close()
    card._known = []
    output = setup.open("auto")
    assert isinstance(output, DeviceOutput)
    assert not output.status().available


def test_a_file_is_begun_anew_by_a_run_and_gone_on_with_by_a_restarted_player(setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"something of yesterday" * 10)
    setup.open(f"wav:{path}").close()
    assert path.stat().st_size == 44
    path.write_bytes(b"something of today" * 10)
    with pytest.raises(SoundError, match="no WAV file that this program began"):
        setup.open(f"wav:{path}")


def test_none_goes_nowhere(setup: Setup) -> None:
    assert setup.open("none").facts.output == "none"


@pytest.mark.parametrize("output", ["", "wav:", "loudspeaker", "wav"])
def test_anything_else_is_refused_with_what_is_allowed(setup: Setup, output: str) -> None:
    with pytest.raises(SoundError, match="allowed are auto, speaker, none and wav:PATH"):
        setup.open(output)
    with pytest.raises(SoundError, match="allowed are"):
        describe(Player(output=output))


def test_describe_tells_what_would_be_used_and_opens_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(device("USB Speaker"))
    use(monkeypatch, card)
    assert describe(Player(output="auto")) == "speaker 'USB Speaker' at 24000 Hz"
    assert describe(Player(output="wav:out.wav")) == "wav:out.wav"
    assert describe(Player(output="none")) == "none"
    use(monkeypatch, Card())
    assert "wav:chatterline.wav (no output device" in describe(Player(output="auto"))
    with pytest.raises(SoundError, match=r"player\.output: no output device"):
        describe(Player(output="speaker"))
    assert not card.streams
    assert not Path("chatterline.wav").exists()
    assert not Path("out.wav").exists()
