"""The `speak` command against a dispatcher that answers by script, and against the real pipeline."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.harness import until
from tests.ipc.fake_dispatcher import FakeDispatcher, accepted, cancelled, finished, rejected, speak_everything

pytestmark = pytest.mark.slow  # each test starts the command several times

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake():
    with FakeDispatcher() as dispatcher:
        yield dispatcher


class Speak:
    """Runs the command in a folder of its own."""

    def __init__(self, to, folder):
        self.to, self.folder = to, folder
        self.env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments, to=True, **options):
        where = ["--to", self.to] if to else []
        command = [sys.executable, "-m", "launch.speak", *arguments, *where]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(command, cwd=self.folder, env=self.env, **pipes)

    def __call__(self, *arguments, given=b"", to=True):
        """(exit code, standard output, standard error)"""
        process = self.start(*arguments, to=to)
        out, err = process.communicate(given, timeout=60)
        return process.returncode, out, err.decode()


@pytest.fixture
def speak(fake, tmp_path):
    return Speak(fake.to, tmp_path)


# --------------------------------------------------------------------------- saying


def test_a_text_is_accepted_and_nothing_printed(fake, speak):
    assert speak("Hello", "you.") == (0, b"", "")
    (request,) = fake.of("speak")
    assert request["text"] == "Hello you."
    assert set(request) == {"type", "id", "text"}


def test_options_go_into_the_request(fake, speak):
    code, _, _ = speak(
        "Hi", "--voice", "w", "--language", "zh", "--speed", "1.5", "--conversation", "c", "--priority", "high",
        "--seed", "7", "--set", "pitch=60", "--set", "loud=true", "--set", "gain=0.5", "--set", "mode=whisper=x",
    )  # fmt: skip
    assert code == 0
    (request,) = fake.of("speak")
    assert request | {"id": ""} == {
        "type": "speak", "id": "", "text": "Hi", "voice": "w", "language": "zh", "speed": 1.5, "conversation": "c",
        "priority": "high", "seed": 7, "settings": {"pitch": 60, "loud": True, "gain": 0.5, "mode": "whisper=x"},
    }  # fmt: skip


def test_json_prints_every_event_a_line(speak):
    code, out, _ = speak("--json", "Hi")
    assert code == 0
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["accepted", "started", "progress", "finished"]


def test_what_the_server_refuses_is_said_and_is_exit_code_1(fake, speak):
    fake.script = lambda fake, peer, request: fake.send(peer, rejected(request, "speed", "9.0 is not from 0.25 to 4"))
    code, out, err = speak("--speed", "9", "Hi")
    assert (code, out, err) == (1, b"", "speak: speed: 9.0 is not from 0.25 to 4\n")
    code, out, _ = speak("--speed", "9", "--json", "Hi")
    assert (code, json.loads(out)["type"]) == (1, "rejected")


def test_speech_that_fails_while_it_is_waited_for_is_exit_code_1(fake, speak):
    def fail(fake, peer, request):
        fake.send(peer, accepted(request))
        fake.send(peer, {"type": "failed", "id": request["id"], "reason": "broken", "chars": [0, 1], "final": True})

    fake.script = fail
    assert speak("--wait", "Hi")[0::2] == (1, "speak: broken\n")


def test_speech_that_somebody_silences_is_exit_code_4(fake, speak):
    def silence(fake, peer, request):
        fake.send(peer, accepted(request))
        fake.send(peer, cancelled(request, "H"))

    fake.script = silence
    assert speak("--wait", "Hi")[0] == 4


def test_a_part_that_cannot_be_spoken_is_said(fake, speak):
    def fail(fake, peer, request):
        fake.send(peer, accepted(request))
        fake.send(peer, {"type": "failed", "id": request["id"], "reason": "no", "chars": [0, 1], "final": False})
        fake.send(peer, finished(request))

    fake.script = fail
    assert speak("--wait", "Hi") == (0, b"", "speak: characters 0 to 1: no\n")


def test_without_a_pipeline_it_says_how_to_start_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        to = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        code, out, err = Speak(to, tmp_path)("Hello.")
    assert (code, out) == (3, b"")
    assert err == f"speak: no pipeline answers at {to}: start one with `launch pipeline.yaml`\n"


def test_the_pipeline_is_found_by_the_configuration_here(fake, speak, tmp_path):
    port = fake.to.rpartition(":")[2]
    (tmp_path / "pipeline.yaml").write_text(f'text: {{bind: "tcp://127.0.0.1:{port}"}}\n')
    assert speak("Hello.", to=False)[0] == 0
    assert fake.of("speak")
    (tmp_path / "pipeline.yaml").write_text("text: {bnd: x}\n")
    code, _, err = speak("Hello.", to=False)
    assert code == 2
    assert "text.bnd" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to say"),
        (["--status", "Hello"], "--status speaks no text"),
        (["--status", "--pause"], "--status and --pause"),
        (["--file", "x", "Hello"], "cannot be given both"),
        (["--out", "x.mp3", "Hi"], "must end in .wav, .flac, .pcm, .raw"),
        (["--out", "-", "--json", "Hi"], "both write to standard output"),
        (["--output", "stream", "Hi"], "needs --out"),
        (["--set", "pitch", "Hi"], "'pitch' is not NAME=VALUE"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["--out", "nowhere/x.wav", "Hi"], "nowhere/x.wav"),
        (["--out", "nowhere/x.raw", "Hi"], "nowhere/x.raw"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_says_why(speak, arguments, words):
    code, out, err = speak(*arguments)
    assert (code, out) == (2, b"")
    assert words in err
    assert "Traceback" not in err


def test_help_lists_the_exit_codes(speak):
    code, out, _ = speak("--help", to=False)
    assert code == 0
    for exit_code in (0, 1, 2, 3, 4, 130, 143):
        assert f"\n    {exit_code} " in out.decode()


# --------------------------------------------------------------------------- texts in pieces


def test_standard_input_is_spoken_as_it_comes(fake, speak):
    process = speak.start("-")
    process.stdin.write("Grüß".encode()[:3])  # in the middle of ü
    process.stdin.flush()
    assert fake.until("text")[0]["text"] == "Gr"
    process.stdin.write("Grüß".encode()[3:])
    process.stdin.flush()
    assert fake.until("text", 2)[1]["text"] == "üß"
    assert fake.of("end") == []
    process.stdin.close()
    assert process.wait(20) == 0
    assert fake.of("end")[0]["offset"] == 4
    process.stdout.close()
    process.stderr.close()


def test_input_that_is_not_utf_8_is_said_and_the_rest_spoken(fake, speak):
    code, _, err = speak("-", given=b"caf\xe9 au lait")
    assert code == 0
    assert "not UTF-8" in err
    assert fake.of("text")[0]["text"] == "caf  au lait"


def test_empty_input_speaks_nothing(fake, speak):
    assert speak("-") == (0, b"", "")
    assert fake.requests == []


def test_what_comes_after_the_pipeline_has_ended_a_silent_text_is_another_utterance(fake, speak):
    def impatient(fake, peer, request):
        speak_everything(fake, peer, request)
        if request["type"] == "text" and len(fake.of("speak")) == 1:
            fake.send(peer, finished(fake.state[request["id"]][0], chars=4))

    fake.script = impatient
    process = speak.start("-", "--json")
    process.stdin.write(b"One. ")  # the last character arrives too late
    process.stdin.flush()
    line = b""
    while b"finished" not in line:
        line = process.stdout.readline()
    process.stdin.write(b"Two.")
    process.stdin.flush()
    fake.until("speak", 2)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    second = fake.of("speak")[1]["id"]
    assert "".join(text["text"] for text in fake.of("text") if text["id"] == second) == " Two."
    last = json.loads(out.splitlines()[-1])
    assert (last["type"], last["id"], last["chars"]) == ("finished", second, 5)


def test_a_long_file_travels_in_pieces_without_loss(fake, speak, tmp_path):
    text = "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. " * 300
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    fake.script = lambda fake, peer, request: heard_at_once(fake, peer, request)
    assert speak("--file", "book.txt")[0::2] == (0, "")
    assert "".join(piece["text"] for piece in fake.of("text")) == text
    assert max(len(piece["text"]) for piece in fake.of("text")) <= 1000


def heard_at_once(fake, peer, request):
    speak_everything(fake, peer, request)
    if request["type"] == "text":
        chars = request["offset"] + len(request["text"])
        fake.send(peer, {"type": "progress", "id": request["id"], "chars": chars, "seconds": 1.0})


def test_a_short_file_is_sent_whole_and_returns_at_once(fake, speak, tmp_path):
    (tmp_path / "note.txt").write_text("A short note.\n")
    fake.script = lambda fake, peer, request: fake.send(peer, accepted(request))
    assert speak("--file", "note.txt")[0] == 0
    assert fake.of("speak")[0]["text"] == "A short note.\n"


def test_a_file_that_is_not_utf_8_is_refused_before_anything_is_said(fake, speak, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 10_000)
    code, _, err = speak("--file", "latin.txt")
    assert code == 2
    assert "latin.txt: not UTF-8 near byte 3" in err
    assert fake.requests == []


# --------------------------------------------------------------------------- sound


@pytest.mark.parametrize("name", ["out.wav", "out.flac", "out.pcm", "-"])
def test_sound_comes_back_sample_for_sample(speak, tmp_path, name):
    code, out, err = speak("--out", name, "Hi")
    assert (code, err) == (0, "")
    if name == "-":
        sound = np.frombuffer(out, "<i2")
    elif name == "out.pcm":
        sound = np.fromfile(tmp_path / name, "<i2")
    else:
        sound, rate = soundfile.read(tmp_path / name, dtype="int16")
        assert rate == 24_000
    np.testing.assert_array_equal(sound, np.arange(4800) % 1000)


def test_a_refused_text_leaves_no_file(fake, speak, tmp_path):
    fake.script = lambda fake, peer, request: fake.send(peer, rejected(request, "voice", "no"))
    assert speak("--out", "out.wav", "Hi")[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_silences_the_utterance_without_a_traceback(fake, speak):
    def endless(fake, peer, request):
        if request["type"] == "speak":
            speak_everything(fake, peer, request | {"text": "x" * 1000})

    fake.script = endless
    process = speak.start("--out", "-", "Hi")
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(20) == 1
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.stdin.close()


def test_a_bar_shows_how_far_it_is_on_a_terminal_only(fake, speak):
    terminal, ours = pty.openpty()
    process = speak.start("--out", "out.wav", "Hello", stderr=ours)
    os.close(ours)
    shown = b""
    try:
        while data := os.read(terminal, 4096):
            shown += data
    except OSError:
        pass  # Linux's way to say that the other end is closed
    os.close(terminal)
    assert process.wait(20) == 0
    assert b"5 of 5 characters, 0.5 s of sound" in shown
    process.communicate()


# --------------------------------------------------------------------------- silencing


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("arguments", [["--wait", "Hi"], ["-"]])
def test_an_interrupt_silences_what_it_speaks(fake, speak, number, code, arguments):
    def hold(fake, peer, request):
        if request["type"] == "speak":
            fake.send(peer, accepted(request))
        elif request["type"] == "cancel":
            fake.send(peer, cancelled({"id": request["id"]}, "H"))

    fake.script = hold
    process = speak.start(*arguments, "--json")
    if arguments == ["-"]:
        process.stdin.write(b"Hello")
        process.stdin.flush()
        fake.until("text")
    process.stdout.readline()  # accepted
    process.send_signal(number)
    assert process.wait(20) == code
    assert fake.of("cancel")[0]["id"] == fake.of("speak")[0]["id"]
    assert json.loads(process.stdout.read().splitlines()[-1])["heard"] == "H"
    assert b"Traceback" not in process.stderr.read()
    process.communicate()


def test_cancel_takes_all_an_id_or_a_conversation(fake, speak):
    assert speak("--cancel", "all")[0] == 0
    assert fake.of("cancel")[-1] == {"type": "cancel", "all": True}
    assert speak("--cancel", "chat")[0] == 0  # no such id, so it is a conversation
    assert fake.of("cancel")[-2:] == [
        {"type": "cancel", "id": "chat"},
        {"type": "cancel", "conversation": "chat"},
    ]


# --------------------------------------------------------------------------- questions


def test_status_shows_stages_queues_latencies_and_the_text(speak):
    code, out, err = speak("--status")
    assert (code, err) == (0, "")
    shown = out.decode()
    for word in ("healthy", "t3-0", "25.0%", "70.0%", "5.0%", "speaker ring", "first_audio", "Hello there, [you] two.",
                 "accepted"):  # fmt: skip
        assert word in shown
    assert "\x1b" not in shown
    code, out, _ = speak("--status", "--json")
    assert json.loads(out)["type"] == "status"


def test_voices_are_listed_and_filtered_with_the_settings(speak):
    code, out, _ = speak("--voices")
    assert code == 0
    assert all(word in out.decode() for word in ("Vee", "Wu", "pitch", "0 to 99", "How high."))
    assert "Wu" not in speak("--voices", "vEE")[1].decode()
    assert "no voice has 'xyz'" in speak("--voices", "xyz")[1].decode()


def test_ping_pause_resume_and_a_new_voice(fake, speak, tmp_path):
    assert speak("--ping")[:2] == (0, b"t3-0  0.50 ms\n")
    assert speak("--pause") == (0, b"", "")
    assert speak("--resume") == (0, b"", "")
    (tmp_path / "me.wav").write_bytes(b"RIFF" * 100)
    assert speak("--add-voice", "me", "me.wav")[:2] == (0, b"voice me: 400 bytes\n")
    assert [request["type"] for _, request in fake.requests] == ["ping", "pause", "resume", "voice_add"]


# --------------------------------------------------------------------------- the real thing


@pytest.mark.parametrize("engine", ["espeak"])
def test_the_command_and_the_pipeline_understand_each_other(pipeline, tmp_path):
    running = pipeline()
    speak = Speak(running.to, tmp_path)
    assert speak("Hello.") == (0, b"", "")
    code, out, err = speak("--json", "Hello again.")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["type"] == "finished"
    (tmp_path / "book.txt").write_text("A line of the book. " * 400)
    assert speak("--out", "book.flac", "--file", "book.txt")[0::2] == (0, "")
    assert soundfile.info(tmp_path / "book.flac").duration > 300
    assert speak("-", "--json", given=b"Bit by bit.")[0] == 0
    code, _, err = speak("--speed", "9", "Hi")
    assert code == 1
    assert "0.25 to 4" in err
    assert "default" in speak("--voices")[1].decode()
    assert "t3-0" in speak("--ping")[1].decode()
    assert "healthy" in speak("--status")[1].decode()
    assert speak("--pause")[0] == 0
    held = speak.start("Held.", "--wait", "--json")
    name = json.loads(held.stdout.readline())["id"]
    assert speak("--cancel", name)[0::2] == (0, "")
    assert held.wait(20) == 4
    held.communicate()
    assert speak("--resume")[0] == 0
    until(lambda: json.loads(speak("--status", "--json")[1])["queued"] == 0, "all is over")
