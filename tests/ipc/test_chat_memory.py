"""What a model is told of the conversation: what was asked, and what was heard."""

from __future__ import annotations

import base64
import stat

import pytest

from ipc.chat_memory import Memory, Question, spoken_question


def roles(messages):
    return [message["role"] for message in messages]


def test_answers_are_remembered_as_they_were_heard():
    memory = Memory("Be brief.")
    memory.add(Question("Why?"), "Because of ")
    assert memory.messages(Question("Of what?")) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because of"},
        {"role": "user", "content": "Of what?"},
    ]


def test_of_an_answer_that_nobody_heard_nothing_is_told_and_roles_still_alternate():
    memory = Memory()
    memory.add(Question("One?"), "")
    memory.add(Question(audio=b"RIFF"), " ")
    messages = memory.messages(Question("Three?"))
    assert roles(messages) == ["user"]
    kinds = [part["type"] for part in messages[0]["content"]]
    assert kinds == ["text", "input_audio", "text"]
    memory = Memory()
    memory.add(Question("One?"), "")
    assert memory.messages(Question("Two?")) == [{"role": "user", "content": "One?\n\nTwo?"}]


def test_the_oldest_exchanges_are_forgotten():
    memory = Memory("S", most_exchanges=2)
    for number in range(5):
        memory.add(Question(f"q{number}"), f"a{number}")
    assert [message["content"] for message in memory.messages(Question("q5"))] == ["S", "q3", "a3", "q4", "a4", "q5"]


def test_a_recording_is_sent_as_input_audio(tmp_path):
    path = tmp_path / "question.WAV"
    path.write_bytes(b"RIFFdata")
    question = spoken_question(path, "in English")
    assert question.content() == [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFFdata").decode(), "format": "wav"}},
        {"type": "text", "text": "in English"},
    ]


@pytest.mark.parametrize(("name", "content"), [("q.txt", b"x"), ("q.wav", b"")])
def test_what_is_no_recording_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="spoken question"):
        spoken_question(tmp_path / name)


def test_a_conversation_goes_on_from_its_file_which_is_for_its_user_alone(tmp_path):
    path = tmp_path / "talk.jsonl"
    memory = Memory()
    memory.load(path)
    memory.add(Question("Grüße?"), "Ja.")
    memory.add(Question(audio=b"x"), "")
    memory.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Memory()
    again.load(path)
    assert again.messages(Question("?")) == memory.messages(Question("?"))
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1"):
        Memory().load(path)
