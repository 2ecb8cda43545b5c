"""What espeak-ng's library does wrong, and that ours does not."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.espeak import folder as folder_module
from pipeline.engines.espeak.catalogue import bundled
from pipeline.engines.espeak.folder import PREFIX, DataFolder, sweep
from pipeline.engines.espeak.library import RATE_HZ, EspeakError, Library, data_path, library_path
from pipeline.engines.espeak.style import style_of
from pipeline.engines.espeak.tokens import open_library
from tests.pipeline.engines.espeak_speech import untouched_library

USUAL = style_of({}, 1.0).parameters
FOX = "[[D@2 kw'Ik br'aUn f'0ks dZ'Vmps ,oUv3 D@2 l'eIzi d'0g]]"

MALLINFO2 = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
)  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    opened = untouched_library()
    yield opened
    opened.close()


def in_a_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_missing_data_folder_raises_and_does_not_end_the_process() -> None:
    code = (
        "from pathlib import Path\n"
        "from pipeline.engines.espeak.library import Library, library_path\n"
        "from types import SimpleNamespace\n"
        "folder = SimpleNamespace(path=Path('/nowhere'), library=library_path(), close=lambda: None)\n"
        "try:\n    Library(folder)\nexcept Exception as error:\n    print('raised', type(error).__name__)\n"
    )
    done = in_a_new_process(code)
    assert done.returncode == 0
    assert done.stdout.strip() == "raised EngineError"


def test_an_installation_with_a_path_beyond_160_bytes_speaks(tmp_path: Path, library: Library) -> None:
    far = tmp_path / ("x" * 120) / ("y" * 120)
    far.mkdir(parents=True)
    (far / "espeak-ng-data").symlink_to(data_path())
    source = far / "espeak-ng-data"
    assert len(os.fsencode(source)) > 240
    voices = [(voice.id, voice.below) for voice in bundled().voices]
    distant = Library(DataFolder(source, library_path(), voices, lambda text: text, dictionaries=True))
    try:
        for one in (distant, library):
            one.renew()
            one.use("en-us", USUAL)
        assert np.array_equal(distant.speak("Hello.", seed=1).pcm, library.speak("Hello.", seed=1).pcm)
    finally:
        distant.close()


def test_a_long_folder_for_temporary_files_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("z" * 150)
    long.mkdir()
    monkeypatch.setattr(folder_module.tempfile, "gettempdir", lambda: str(long))
    opened = open_library(lambda text: text, dictionaries=True)
    try:
        opened.use("en-us", USUAL)
        assert len(opened.speak("Hello.").pcm) > RATE_HZ / 4
    finally:
        opened.close()


def test_an_unknown_voice_is_an_error_and_not_the_voice_before(library: Library) -> None:
    library.renew()
    library.use("de", USUAL)
    german = library.phonemes("nation")
    with pytest.raises(EspeakError, match="xx-nowhere"):
        library.use("xx-nowhere", USUAL)
    library.use("en-us", USUAL)
    assert library.phonemes("nation") != german


@pytest.mark.parametrize("variant", ["", "+f3", "+whisper", "+klatt", "+croak", "+Mr serious"])
def test_sound_repeats_bit_for_bit_whatever_was_spoken_before(library: Library, variant: str) -> None:
    def render() -> bytes:
        library.renew()
        library.use(f"en-us{variant}", USUAL)
        return library.speak(f"{FOX},", phonemes=True, pause=True, seed=7).pcm.tobytes()

    first = render()
    for voice, wpm, text in (("ru+f3", 80, "Привет, 21."), ("es+klatt4", 500, "Perro."), ("vi+m7", 300, "Chào")):
        library.use(voice, style_of({}, wpm / 175).parameters)
        library.speak(text, one_clause=True, seed=wpm)
        assert render() == first


def test_without_renewal_sound_does_not_repeat(library: Library) -> None:
    """If this fails, espeak-ng has mended itself, and `Library.renew` can go."""
    library.renew()
    library.use("en-us", USUAL)
    heard = {library.speak(f"{FOX},", phonemes=True, seed=7).pcm.tobytes() for _ in range(6)}
    assert len(heard) > 1


def test_two_libraries_do_not_meet(library: Library) -> None:
    other = untouched_library()
    try:
        library.renew()
        other.use("de", USUAL)
        library.use("fr", USUAL)
        german, french = other.phonemes("nation"), library.phonemes("nation")
        library.renew()
        assert other.phonemes("nation") == german != french
    finally:
        other.close()


def test_sound_does_not_depend_on_dictionaries() -> None:
    from pipeline.engines.espeak.folder import mute_voice

    full, small = untouched_library(), open_library(mute_voice, dictionaries=False)
    try:
        for voice in ("en-us", "ru", "cmn", "ar+f2", "es", "hi"):
            for one in (full, small):
                one.renew()
                one.use(voice, USUAL)
            phonemes = full.phonemes("Banana").replace("·", "")
            full.renew()
            full.use(voice, USUAL)
            spoken = [one.speak(f"[[{phonemes}]]?", phonemes=True, seed=3) for one in (full, small)]
            assert np.array_equal(spoken[0].pcm, spoken[1].pcm)
            assert spoken[0].words == spoken[1].words
    finally:
        full.close()
        small.close()


def test_a_stopped_clause_leaves_nothing_in_the_next_phonemes(library: Library) -> None:
    library.renew()
    library.use("en-us", USUAL)
    alone = library.phonemes("world.")
    library.speak("Hello, zebra crossing.", one_clause=True)
    assert library.phonemes("world.") == alone


def test_one_clause_stops_where_the_next_begins(library: Library) -> None:
    library.renew()
    library.use("en-us", USUAL)
    spoken = library.speak("Hello, world. And more.", one_clause=True)
    assert [clause.position for clause in spoken.clauses] == [7]
    assert len(spoken.words) == 1


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO2)


def heap_bytes() -> int:
    """What malloc has given out and not got back."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("tells how much memory is in use by mallinfo2, which glibc 2.33 and newer have")
    libc.mallinfo2.restype = _Mallinfo2
    gc.collect()
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


@pytest.mark.slow
def test_a_voice_that_is_set_and_never_spoken_with_costs_no_memory(library: Library) -> None:
    def unspoken() -> None:
        library.use("en-us", USUAL)
        library.use("de", USUAL)
        library.renew()
        library.use("en-us", USUAL)
        library.renew()

    for _ in range(20):
        unspoken()
    before = heap_bytes()
    for _ in range(200):
        unspoken()
    assert heap_bytes() - before < 200 * 300


def test_two_threads_at_once_are_refused(library: Library) -> None:
    library.renew()
    library.use("en-us", USUAL)
    refused: list[str] = []

    def intrude() -> None:
        while not refused and worker.is_alive():
            try:
                library.phonemes("hello")
            except RuntimeError as error:
                refused.append(str(error))

    worker = threading.Thread(target=lambda: [library._speak("word " * 60, 0, False, 0) for _ in range(1)])
    with library._alone():
        worker.start()
        intrude()
        worker.join()
    assert "one thread at a time" in refused[0]


def test_an_error_in_the_callback_reaches_the_caller(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.renew()
    library.use("en-us", USUAL)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.engines.espeak.library.Word", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            library.speak("Hello.")
    assert library.speak("Hello.").words


def test_stretching_slows_down_and_keeps_the_pitch(library: Library) -> None:
    tone = (8000 * np.sin(2 * np.pi * 150 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.int16)
    slow = library.stretch(tone, 0.5)
    assert len(slow) == pytest.approx(2 * RATE_HZ, rel=0.02)
    spectrum = np.abs(np.fft.rfft(slow[2000:-2000].astype(float)))
    assert np.argmax(spectrum) * RATE_HZ / (len(slow) - 4000) == pytest.approx(150, abs=3)


def test_closing_leaves_no_folder_behind() -> None:
    opened = untouched_library()
    root = opened._folder.path.parent
    assert root.is_dir()
    opened.close()
    assert not root.exists()


@pytest.mark.slow
def test_a_process_that_ends_leaves_no_folder_behind() -> None:
    done = in_a_new_process(
        "from tests.pipeline.engines.espeak_speech import untouched_library\n"
        "library = untouched_library()\nprint(library._folder.path.parent)\n"
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_only_folders_that_nobody_holds_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.tempfile, "gettempdir", lambda: str(tmp_path))
    held = untouched_library()
    live = held._folder.path.parent
    dead, young = tmp_path / f"{PREFIX}dead", tmp_path / f"{PREFIX}young"
    for root in (dead, young):
        (root / "espeak-ng-data").mkdir(parents=True)
    long_ago = time.time() - 3600
    for root in (dead, live):
        os.utime(root, (long_ago, long_ago))
    sweep(tmp_path)
    assert (dead.exists(), young.exists(), live.exists()) == (False, True, True)
    held.close()
