"""Which output the configuration means, and opening it.

``auto`` takes the sound card; without PortAudio or a device it writes ``chatterline.wav`` (or, where
another pipeline does, a file with a number) and says so in one line with the fix. What was chosen is
remembered in the run directory: a player that is restarted goes on with the same output (a file is
appended to, a missing device is waited for).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ipc.messages import SAMPLE_RATE, PlayerFacts
from pipeline.config import Player
from workers.playback import Playback
from workers.sound import Output, SoundError
from workers.sound_device import DeviceOutput
from workers.sound_file import FileInUse, WavFile
from workers.sound_paced import Nowhere, PacedOutput, wav_facts
from workers.sound_stream import Backend, load_backend

FALLBACK = Path("chatterline.wav")
_FIX = "to change that, plug in a device, name one with --set player.device=…, or --set player.output=none"


def check_output(output: str) -> str:
    """``output`` if it is a value of player.output; raises `SoundError` listing those."""
    if output in ("auto", "speaker", "none") or (output.startswith("wav:") and output != "wav:"):
        return output
    raise SoundError(f"player.output: {output!r}; allowed are auto, speaker, none and wav:PATH")


def open_output(player: Player, playback: Playback, memory: Path) -> Output:
    """Open what ``player`` asks for. ``memory``: a file in the run directory that tells a successor.

    Raises `SoundError` when it can't be had.
    """
    before = memory.read_text() if memory.exists() else ""
    output, _, note = (before or check_output(player.output)).partition("\n")
    if output == "auto":
        try:
            opened: Output = _speaker(player, playback, patient=False)
            output = "speaker"
        except SoundError as error:
            opened, path = _fallback(player, playback, str(error))
            note, output = opened.facts.note, f"wav:{path}"
    elif output == "speaker":
        try:
            opened = _speaker(player, playback, patient=bool(before))
        except SoundError as error:
            raise SoundError(f"player.output: {error}; {_FIX}") from error
    else:
        opened = _paced(player, playback, output, note, append=bool(before))
    memory.write_text(f"{output}\n{note}")
    return opened


def _fallback(player: Player, playback: Playback, why: str) -> tuple[Output, Path]:
    """The file instead of a sound card: another one where a pipeline is writing the first."""
    for path in (FALLBACK, FALLBACK.with_stem(f"{FALLBACK.stem}-{os.getpid()}")):
        replaced = " (the last session's is replaced)" if path.exists() else ""
        note = f"{why}; speech goes into {path}{replaced}; {_FIX}"
        with suppress(FileInUse):
            return _paced(player, playback, f"wav:{path}", note, append=False), path
    raise SoundError(f"{FALLBACK} is written by another pipeline")


def _speaker(player: Player, playback: Playback, patient: bool) -> Output:
    output = DeviceOutput(load_backend, playback, player.device, player.block)
    output.open(patient)
    return output


def _paced(player: Player, playback: Playback, output: str, note: str, append: bool) -> Output:
    free = player.pace == "free"
    if output == "none":
        facts = PlayerFacts("none", "none", SAMPLE_RATE, player.block, 0.0, note)
        return PacedOutput(playback, Nowhere(), facts, free)
    path = Path(output.removeprefix("wav:"))
    return PacedOutput(playback, WavFile(path, append), wav_facts(path, player.block, note), free)


def describe(player: Player, backend: Backend | None = None) -> str:
    """In one line, where sound would go; for ``launch --check``. Opens nothing. Raises `SoundError`."""
    from workers.sound_stream import find_device

    if check_output(player.output) not in ("auto", "speaker"):
        return player.output
    try:
        device = find_device(backend or load_backend(), player.device)
    except SoundError as error:
        if player.output == "speaker":
            raise SoundError(f"player.output: {error}; {_FIX}") from error
        return f"wav:{FALLBACK} ({error}; {_FIX})"
    return f"speaker {device.name!r} at {device.rate_hz} Hz"
