"""`speak --chat` against a chat server that streams at a set pace and the real pipeline."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile

from ipc.chat import Chat
from ipc.chat_endpoint import ChatEndpoint, Piece
from ipc.chat_memory import Question
from ipc.client import AsyncClient
from ipc.client_track import Sound
from ipc.messages import Progress, Started
from perf.chat_server import ANSWER, ChatServer, tokens_of
from tests.harness import Pipeline, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONG = ANSWER * 4


@pytest.fixture(scope="module")
def running():
    """A pipeline whose speaker goes nowhere, at the pace of speech."""
    one = Pipeline("espeak", {"player.pace": "realtime", "text.idle_s": 1})
    try:
        yield one
        assert one.stop() == 0, one.log()
        assert one.leftovers() == []
    finally:
        one.close()


@pytest.fixture
def server():
    with ChatServer(first_ms=20, token_ms=5) as one:
        yield one


@pytest.fixture
async def client(running):
    async with AsyncClient(running.to) as one:
        yield one


class Talk:
    """The command, run in a folder of its own."""

    def __init__(self, to, url, folder):
        self._where = ["--to", to, "--chat", url]
        self.folder = folder
        self.started = []
        self._env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "launch.speak", *self._where, *arguments]
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=self._env, **pipes))
        return self.started[-1]

    def __call__(self, *arguments):
        """(exit code, standard output, standard error)"""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def talk(running, server, tmp_path):
    one = Talk(running.to, server.url, tmp_path)
    yield one
    for process in one.started:
        process.kill()
        process.communicate()


def contents(request):
    return [message["content"] for message in request["messages"]]


# --------------------------------------------------------------------------- the voice


@pytest.mark.parametrize("begin", ["word", "clause"])
async def test_a_streamed_answer_is_heard_whole_and_while_it_is_written(client, server, begin):
    chat = Chat(client, ChatEndpoint(server.url), options={"output": "stream"}, begin=begin)
    happened = []

    async def tell(what):
        happened.append(what)

    answer = await chat.ask(Question("Why?"), tell)
    assert (answer.text, answer.heard, answer.interrupted, answer.problem) == (ANSWER, ANSWER, False, "")
    assert "".join(what.text for what in happened if isinstance(what, Piece)) == ANSWER
    sounds = [what for what in happened if isinstance(what, Sound)]
    assert all(sooner.first_sample + sooner.count == later.first_sample for sooner, later in pairwise(sounds))
    written = [number for number, what in enumerate(happened) if isinstance(what, Piece)]
    assert happened.index(sounds[0]) < written[-1]  # it sounds before the model has ended


async def test_latencies_are_told_in_order(client, server):
    server.first_ms, server.token_ms = 50, 10
    answer = await Chat(client, ChatEndpoint(server.url), options={"output": "stream"}).ask(Question("Why?"))
    figures = answer.figures
    assert 50 <= figures.first_token_ms < figures.first_word_ms < figures.first_sound_ms
    assert figures.tokens == len(tokens_of(ANSWER))
    assert 0 < figures.token_gap_p50_ms <= figures.token_gap_p90_ms <= figures.token_gap_max_ms
    assert figures.seconds > 10


async def test_a_new_question_interrupts_and_the_model_is_told_what_was_heard(client, server):
    server.script = lambda messages: tokens_of(LONG if len(messages) == 1 else "All right.")
    chat = Chat(client, ChatEndpoint(server.url))
    heard = asyncio.Event()

    async def tell(what):
        if isinstance(what, Progress) and what.chars > 10:
            heard.set()

    first = asyncio.ensure_future(chat.ask(Question("Why?"), tell))
    await asyncio.wait_for(heard.wait(), 20)
    second = await chat.ask(Question("Shorter, please."))
    answer = await first
    assert answer.interrupted
    assert 10 < len(answer.heard) < len(LONG) / 2
    assert LONG.startswith(answer.heard)
    assert (second.heard, second.interrupted) == ("All right.", False)
    assert contents(server.requests[1]) == ["Why?", answer.heard.strip(), "Shorter, please."]
    await chat.ask(Question("Thanks."))
    assert contents(server.requests[2])[2:] == ["Shorter, please.", "All right.", "Thanks."]
    await asyncio.to_thread(until, lambda: server.hung_up <= 1, "the first answer's connection is closed")


async def test_an_answer_silenced_before_its_first_word_was_never_given(client, server):
    server.first_ms = 60_000
    chat = Chat(client, ChatEndpoint(server.url))
    first = asyncio.ensure_future(chat.ask(Question("Why?")))
    await asyncio.to_thread(until, lambda: server.requests, "the model is asked")
    server.first_ms = 0
    server.script = lambda _: ["Yes."]
    assert (await chat.ask(Question("Really?"))).heard == "Yes."
    assert (await first).heard == ""
    assert contents(server.requests[1]) == ["Why?\n\nReally?"]


async def test_of_many_questions_at_once_the_last_is_answered(client, server):
    server.script = lambda _: ["Yes."]
    chat = Chat(client, ChatEndpoint(server.url))
    answers = await asyncio.gather(*(chat.ask(Question(f"q{number}")) for number in range(5)))
    assert [answer.heard for answer in answers][-1] == "Yes."
    assert sum(answer.interrupted for answer in answers) == 4
    assert contents(server.requests[-1])[-1].endswith("q4")


async def test_a_model_that_is_silent_longer_than_the_pipeline_waits_goes_on_where_it_stopped(client, server):
    tokens = tokens_of("It waits here.") + tokens_of(" Then it goes on. And ends.")
    pause_after = len(tokens_of("It waits here."))

    def slowly(some):
        for number, token in enumerate(some):
            time.sleep(2.5 if number == pause_after else 0.001)
            yield token

    server.script, server.paced = lambda _: tokens, slowly
    happened = []

    async def tell(what):
        happened.append(what)

    answer = await Chat(client, ChatEndpoint(server.url)).ask(Question("Why?"), tell)
    assert answer.heard == "".join(tokens)
    assert sum(isinstance(what, Started) for what in happened) == 2


async def test_what_a_model_said_before_it_broke_off_is_spoken_and_the_breakage_told(client, server):
    def breaking(tokens):
        yield from tokens
        raise ConnectionResetError

    server.script, server.paced = lambda _: tokens_of("It begins well, and"), breaking
    answer = await Chat(client, ChatEndpoint(server.url)).ask(Question("Why?"))
    assert answer.heard == "It begins well, and"
    assert server.url in answer.problem


async def test_somebody_elses_cancel_stops_the_model_too(client, server):
    server.script = lambda _: tokens_of(LONG * 20)
    sounding = asyncio.Event()

    async def tell(what):
        if isinstance(what, Started):
            sounding.set()

    answering = asyncio.ensure_future(Chat(client, ChatEndpoint(server.url)).ask(Question("Why?"), tell))
    await asyncio.wait_for(sounding.wait(), 20)
    await client.cancel(all=True)
    answer = await asyncio.wait_for(answering, 20)
    assert answer.interrupted
    assert len(answer.heard) < len(answer.text) < len(LONG * 20)
    await asyncio.to_thread(until, lambda: server.hung_up == 1, "the model's server notices")


# --------------------------------------------------------------------------- the command


def test_the_command_prints_the_answer_and_its_latencies(talk, server):
    code, out, err = talk("Why", "is it?", "--model", "m", "--system", "Be brief.", "--out", "a.wav")
    assert (code, out) == (0, ANSWER + "\n")
    assert re.fullmatch(
        r"first token \d+ ms, first word \d+ ms, first sound \d+ ms \(\d+ ms after the word\), "
        r"between tokens [\d.]+ ms \(p90 [\d.]+\), \d+ tokens, [\d.]+ s heard\n",
        err,
    )
    assert soundfile.info(talk.folder / "a.wav").duration > 10
    assert server.requests[0]["model"] == "m"
    assert contents(server.requests[0]) == ["Be brief.", "Why is it?"]


def test_a_recording_is_asked_and_everything_told_as_json(talk, server):
    (talk.folder / "question.wav").write_bytes(b"RIFF")
    code, out, _ = talk("--audio", "question.wav", "--json", "--out", "a.wav")
    assert code == 0
    assert server.requests[0]["messages"][0]["content"][0]["type"] == "input_audio"
    lines = [json.loads(line) for line in out.splitlines()]
    assert {"token", "accepted", "audio", "finished", "answer"} <= {line["type"] for line in lines}
    assert lines[-1]["heard"] == ANSWER
    assert lines[-1]["figures"]["first_sound_ms"] > 0


def test_a_conversation_is_remembered_from_command_to_command(talk, server):
    server.script = lambda _: ["Yes."]
    assert talk("One?", "--memory", "m.jsonl", "--out", "a.wav")[0] == 0
    assert talk("Two?", "--memory", "m.jsonl", "--out", "a.wav")[0] == 0
    assert contents(server.requests[1]) == ["One?", "Yes.", "Two?"]


def test_questions_on_standard_input_interrupt_and_an_empty_line_silences(talk, server):
    server.script = lambda messages: tokens_of("The end." if messages[-1]["content"].endswith("Three?") else LONG)
    process = talk.start()
    for question in (b"One?\n", b"Two?\n"):
        process.stdin.write(question)
        process.stdin.flush()
        assert process.stdout.read(100)
    process.stdin.write(b"\n")
    process.stdin.flush()
    told = process.stderr.readline() + process.stderr.readline() + process.stderr.readline()
    assert told.count(b"silenced; heard: ") == 2
    process.stdin.write(b"Three?\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.endswith(b"The end.\n")
    assert [contents(request)[-1].splitlines()[-1] for request in server.requests] == ["One?", "Two?", "Three?"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_silences_and_keeps_what_was_heard(talk, server, running, number, code):
    server.script = lambda _: tokens_of(LONG)
    process = talk.start("Why?", "--memory", "m.jsonl", "--json")
    for line in process.stdout:
        if json.loads(line)["type"] == "progress" and json.loads(line)["chars"] > 5:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    heard = json.loads((talk.folder / "m.jsonl").read_text())["heard"]
    assert 3 < len(heard) < len(LONG)
    with running.client() as client:
        until(lambda: client.status().queued == 0, "it is silent")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--file", "x"], 2, "leave --file away"),
        (["--status"], 2, "leave --status away"),
        (["--audio", "x.wav"], 2, "x.wav"),
        (["Hi", "--chat-key", "nowhere"], 2, "nowhere"),
        (["Hi", "--memory", "book.txt"], 2, "line 1"),
        (["Hi", "--voice", "nobody"], 1, "nobody"),
    ],
)
def test_a_wrong_command_line_says_why(talk, arguments, code, words):
    (talk.folder / "book.txt").write_text("Once upon a time.\n")
    found, _, err = talk(*arguments)
    assert (found, "Traceback" in err) == (code, False)
    assert words in err


def test_without_a_model_it_is_said_and_nothing_spoken(running, tmp_path):
    found, out, err = Talk(running.to, "http://127.0.0.1:9/v1", tmp_path)("Hi", "--model", "m")
    assert (found, out.strip()) == (1, "")
    assert "http://127.0.0.1:9/v1/chat/completions" in err


def test_what_belongs_to_chat_is_refused_without_it(tmp_path):
    command = [sys.executable, "-m", "launch.speak", "--model", "m", "Hi"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=30)
    assert done.returncode == 2
    assert b"--model is for --chat" in done.stderr
