"""Growing texts in the simulated pipeline: what a writer may repeat, and how long it may be silent."""

from __future__ import annotations

import msgspec
import pytest

from ipc.messages import End, Finished, Pause, Rejected, Resume, Text
from pipeline.config import Config
from tests.pipeline.world import World

LONG = "This sentence takes a while to speak, and then it is over. " * 3


def heard(world):
    return world.heard().replace(" ", "")


def patient(idle_s):
    return World(msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, idle_s=idle_s)))


def test_what_is_said_twice_with_its_offset_is_heard_once():
    world = World()
    world.speak("One. ", final=False)
    for text, offset in (("Two. ", 5), ("Two. ", 5), ("One. Two. Three.", 0), ("Two. ", 5), ("", 16)):
        world.request(Text(id="a", text=text, offset=offset))
    world.request(End(id="a", offset=16))
    world.run_until(lambda: world.events_of(Finished))
    assert heard(world) == "One.Two.Three."
    assert world.events_of(Rejected) == []


def test_a_gap_in_the_text_is_refused_and_says_how_far_it_came():
    world = World()
    world.speak("One. ", final=False)
    world.request(Text(id="a", text="Three.", offset=10))
    world.request(End(id="a", offset=16))
    text, end = world.events_of(Rejected)
    assert (text.request, text.field, end.request, end.field) == ("text", "offset", "end", "offset")
    assert "5 characters" in text.reason
    world.request(Text(id="a", text="Two. Three.", offset=5))
    world.request(End(id="a", offset=16))
    world.run_until(lambda: world.events_of(Finished))
    assert heard(world) == "One.Two.Three."


@pytest.mark.parametrize("repeat_from", [0, 7, 30])
def test_a_writer_that_repeats_itself_after_a_crash_is_heard_once(repeat_from):
    world = World()
    world.speak("", final=False)
    for at in range(0, 60, 10):
        world.request(Text(id="a", text=LONG[at : at + 10], offset=at))
    world.kill_dispatcher()
    world.request(Text(id="a", text=LONG[repeat_from:], offset=repeat_from))
    world.request(End(id="a", offset=len(LONG)))
    world.run_until(lambda: world.events_of(Finished))
    assert heard(world) == LONG.replace(" ", "")


def test_a_writer_is_not_idle_while_its_text_is_being_spoken():
    world = patient(0.5)
    world.speak(LONG, final=False)
    world.run(2.0)
    assert len(heard(world)) < len(LONG.replace(" ", ""))
    world.request(Text(id="a", text="More."))
    world.request(End(id="a"))
    world.run_until(lambda: world.events_of(Finished))
    assert heard(world) == LONG.replace(" ", "") + "More."


def test_a_writer_is_not_idle_while_the_speaker_is_held():
    world = patient(0.5)
    world.speak(LONG, final=False)
    world.run(0.3)
    world.request(Pause())
    world.run(5.0)
    world.request(Resume())
    world.request(Text(id="a", text="More.", offset=len(LONG)))
    assert world.events_of(Rejected) == []


@pytest.mark.parametrize("text", ["Short.", "Short. ", ""])
def test_a_writer_that_is_silent_after_its_text_was_spoken_is_ended(text):
    world = patient(0.5)
    world.speak(text, final=False)
    world.run_until(lambda: world.events_of(Finished), 10)
