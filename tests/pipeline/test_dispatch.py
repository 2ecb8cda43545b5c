"""The dispatcher's state machine in a simulated pipeline."""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ipc.messages import (
    Accepted,
    Aligned,
    Attach,
    Cancel,
    Cancelled,
    End,
    Failed,
    Finished,
    Flush,
    Ok,
    Pause,
    Ping,
    Played,
    Pong,
    Received,
    Rejected,
    Resume,
    Speak,
    Started,
    State,
    Status,
    StatusReport,
    Text,
    VoiceList,
    Voices,
    Watch,
    Work,
)
from pipeline.config import Config
from pipeline.events import Confirm, Observed, Reattach, Requested, ToClient, VoicesFound
from pipeline.timeline import Timeline

_spec = importlib.util.spec_from_file_location("world", Path(__file__).with_name("world.py"))
assert _spec
assert _spec.loader
world_module = importlib.util.module_from_spec(_spec)
sys.modules["world"] = world_module
_spec.loader.exec_module(world_module)
World = world_module.World

LONG = (
    "The first sentence is not long. The second one, which is a little longer, follows it. "
    "Then comes a third; it has two parts. And the fourth ends the text."
)


def plain(text: str) -> str:
    return text.replace(" ", "").replace("\n", "")


def heard(world: World, slot: int = 0) -> str:
    return plain(world.heard(slot))


def done(world: World, *ids: str) -> bool:
    over = {e.id for _, e in world.events if isinstance(e, Finished | Cancelled) or (isinstance(e, Failed) and e.final)}
    return set(ids) <= over


def test_everything_said_is_heard_once_and_in_order() -> None:
    world = World()
    world.speak(LONG)
    world.run_until(lambda: done(world, "a"))
    assert heard(world) == plain(LONG)
    kinds = [type(e).__name__ for _, e in world.events if not isinstance(e, Aligned)]
    assert kinds[0] == "Accepted"
    assert kinds[1] == "Started"
    assert kinds[-1] == "Finished"
    finished = world.events_of(Finished)[0]
    assert finished.chars == len(LONG)
    assert finished.samples == world.rings[0].read
    assert not world.records or all(kind == "DoneRecord" for kind, *_ in world.records)


def test_alignment_maps_every_character_back_to_the_text_as_given() -> None:
    world = World()
    text = "Some **bold** words, then more. The end."
    world.speak(text)
    world.run_until(lambda: done(world, "a"))
    spoken = "".join(text[e.chars[0] : e.chars[1]] for e in world.events_of(Aligned))
    assert plain(spoken) == plain(text.replace("**", ""))
    starts = [e.samples[0] for e in world.events_of(Aligned)]
    assert starts == sorted(starts)


def test_text_that_arrives_bit_by_bit_is_spoken_as_it_comes() -> None:
    world = World()
    world.speak("", final=False)
    for piece in ("Hello ", "there, my ", "friend. ", "How are "):
        world.request(Text(id="a", text=piece))
        world.run(0.2)
    assert world.events_of(Started), "the first clause is complete, so it sounds"
    world.request(Text(id="a", text="you?"))
    world.request(End(id="a"))
    world.run_until(lambda: done(world, "a"))
    assert heard(world) == plain("Hello there, my friend. How are you?")


def test_a_silent_writer_holds_nothing_back_longer_than_flush_ms() -> None:
    world = World()
    world.speak("Well then", final=False)
    world.run(world.config.flow.flush_ms / 1000 - 0.05)
    assert heard(world) == ""
    world.run(1.0)
    assert heard(world) == plain("Well then")


def test_flush_speaks_what_is_pending_now() -> None:
    world = World()
    world.speak("Well then", final=False)
    world.request(Flush(id="a"))
    world.run(0.39)
    assert heard(world).startswith("Well")


def test_a_writer_that_falls_silent_for_good_is_ended() -> None:
    config = msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, idle_s=2.0))
    world = World(config)
    world.speak("Half a sen", final=False)
    world.speak("Next one.", id="b")
    world.run_until(lambda: done(world, "a", "b"), 20)
    assert heard(world) == plain("Half a sen Next one.")
    world.request(Text(id="a", text="more"))
    assert world.events_of(Rejected)[-1].field == "id"


def test_text_that_waited_while_the_dispatcher_was_stopped_is_not_too_late() -> None:
    world = World()
    world.speak("Half a sen", final=False)
    world.run(1.0)
    machine = world.machine
    late_s = world.now_s + world.config.text.idle_s + 10
    machine.handle(Observed({}, more=True), late_s)
    machine.handle(Requested(b"me", False, Text(id="a", text="tence. ")), late_s)
    (utterance,) = machine.state.utterances.values()
    assert (utterance.text, utterance.ended) == ("Half a sentence. ", False)


def test_a_conversation_keeps_its_order_and_never_overlaps() -> None:
    world = World()
    for number in range(6):
        world.speak(f"Sentence number {number}.", id=str(number))
    world.run_until(lambda: done(world, *"012345"))
    assert heard(world) == "".join(plain(f"Sentence number {number}.") for number in range(6))


def test_higher_priority_of_another_conversation_goes_first_at_the_next_boundary() -> None:
    world = World()
    world.speak(LONG * 3, id="long", conversation="reader")
    world.run(1.0)
    before = heard(world)
    world.speak("Urgent news.", id="news", conversation="alerts", priority="high")
    world.run_until(lambda: done(world, "long", "news"))
    sound = heard(world)
    at = sound.index(plain("Urgent news."))
    assert sound.replace(plain("Urgent news."), "") == plain(LONG * 3)
    assert sound[:at].endswith((".", ",", ";")), "it came between two segments"
    assert at - len(before) <= len("which is a little longer, follows it."), "and not behind all that was made ahead"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_what_was_taken_back_for_something_urgent_is_heard_once(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    ids = []
    for number in range(12):
        priority = rng.choice(["low", "normal", "high"])
        ids.append(str(number))
        world.speak(f"<{number}> {LONG} </{number}>", id=str(number), conversation=str(number), priority=priority)
        world.run(rng.uniform(0, 3))
        if rng.random() < 0.3:
            rng.choice([lambda: world.kill("s3gen"), lambda: world.kill("t3"), world.kill_dispatcher])()
    world.run_until(lambda: done(world, *ids), 2000)
    sound = heard(world)
    assert len(sound) == sum(len(plain(f"<{number}> {LONG} </{number}>")) for number in range(12))
    assert world.machine.state.counters.counts["taken_back"] or seed


def test_low_priority_waits_for_normal() -> None:
    world = World()
    world.speak(LONG, id="first", conversation="one")
    world.speak("Low.", id="low", conversation="two", priority="low")
    world.speak("Normal.", id="normal", conversation="three")
    world.run_until(lambda: done(world, "first", "low", "normal"))
    assert heard(world) == plain(LONG) + "Normal." + "Low."


def test_cancel_silences_within_a_block_and_tells_what_was_heard() -> None:
    world = World()
    world.speak(LONG)
    world.run_until(lambda: len(heard(world)) > 40)
    world.request(Cancel(id="a"))
    before = heard(world)
    world.run(3.0)
    assert heard(world) == before
    event = world.events_of(Cancelled)[0]
    assert plain(event.heard) == before[: len(plain(event.heard))]
    assert abs(len(plain(event.heard)) - len(before)) <= 1
    assert event.exact
    world.speak("Next.", id="b")
    world.run_until(lambda: done(world, "b"))
    assert heard(world) == before + "Next."


def test_cancelling_a_waiting_utterance_leaves_the_playing_one_alone() -> None:
    world = World()
    world.speak("One is short.", id="1")
    world.speak("Two is never heard.", id="2")
    world.speak("Three is.", id="3")
    world.run(0.2)
    assert world.rings[0].written > 20 * world_module.TOKEN_SAMPLES, "the second is in the ring already"
    world.request(Cancel(id="2"))
    world.run_until(lambda: done(world, "1", "2", "3"))
    assert heard(world) == plain("One is short. Three is.")
    assert world.events_of(Cancelled, "2")[0].heard == ""


def test_interrupt_cancels_what_plays_and_keeps_what_was_only_made_ahead() -> None:
    world = World()
    world.speak("This is being said right now.", id="playing", conversation="a")
    world.speak("Made ahead.", id="ahead", conversation="b")
    world.run(0.5)
    before = heard(world)
    world.speak("Stop!", id="stop", conversation="c", priority="interrupt")
    world.run_until(lambda: done(world, "playing", "ahead", "stop"))
    assert heard(world) == before + "Stop!" + plain("Made ahead.")
    assert world.events_of(Cancelled, "playing")
    assert world.events_of(Finished, "ahead")


def test_cancel_all_and_conversation_reach_other_clients() -> None:
    world = World()
    world.speak(LONG, id="a", client=b"one", conversation="x")
    world.speak(LONG, id="a", client=b"two", conversation="y")
    world.run(0.5)
    world.request(Cancel(conversation="y"), client=b"three")
    assert (b"two", world.events_of(Cancelled)[0]) in world.events
    assert world.events[-1] == (b"three", Ok(request="cancel"))
    world.request(Cancel(all=True), client=b"three")
    assert len(world.events_of(Cancelled)) == 2
    world.request(Cancel(id="nothing"), client=b"three")
    assert world.events_of(Rejected)[-1].field == "id"


def test_pause_holds_and_resume_goes_on_without_loss() -> None:
    world = World()
    world.speak(LONG)
    world.run(1.0)
    world.request(Pause())
    world.run(0.1)
    held = heard(world)
    world.run(5.0)
    assert heard(world) == held
    world.request(Resume())
    world.run_until(lambda: done(world, "a"))
    assert heard(world) == plain(LONG)


def test_nothing_runs_further_ahead_than_it_may() -> None:
    world = World()
    world.rings[0].paused = True
    world.speak(LONG * 20)
    world.run(20)
    ahead_s = world.rings[0].written / 24000
    flow = world.config.flow
    assert flow.ahead_s - 1 <= ahead_s <= flow.ahead_s + 1
    assert sum(kind == "TokensRecord" for kind, *_ in world.records) < 40
    assert sum(kind == "SegmentRecord" for kind, *_ in world.records) < 20


def test_a_listener_that_never_reads_slows_nobody_else() -> None:
    world = World()
    world.stuck_clients.add(b"stuck")
    world.speak(LONG * 3, id="stuck", client=b"stuck", output="stream")
    world.speak(LONG, id="fine", client=b"fine", output="stream")
    world.speak(LONG, id="loud", client=b"me")
    world.run_until(lambda: done(world, "fine", "loud"))
    assert plain("".join(label[0] for label in world.streamed["fine"] if label)) == plain(LONG)
    assert heard(world) == plain(LONG)
    assert not done(world, "stuck")
    world.stuck_clients.clear()
    world.run_until(lambda: done(world, "stuck"))
    assert plain("".join(label[0] for label in world.streamed["stuck"] if label)) == plain(LONG * 3)
    assert len(world.machine.state.free_slots) == world.config.text.max_streams


def test_streams_beyond_the_slots_wait_for_one() -> None:
    config = msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, max_streams=2))
    world = World(config)
    for number in range(5):
        world.speak(LONG, id=str(number), client=str(number).encode(), output="stream")
    world.run_until(lambda: done(world, *"01234"))
    assert all(plain("".join(x[0] for x in world.streamed[n] if x)) == plain(LONG) for n in "01234")


def test_a_slot_used_again_counts_its_stints_on() -> None:
    world = World()
    for number in range(3):
        world.speak(LONG, id=str(number), output="stream")
        world.run_until(lambda: done(world, str(number)))  # noqa: B023
        if number == 1:
            world.kill_dispatcher()
    assert all(plain("".join(x[0] for x in world.streamed[n] if x)) == plain(LONG) for n in "012")


def test_played_tells_what_a_remote_listener_heard() -> None:
    world = World()
    world.speak(LONG, output="stream")
    world.request(Played(id="a", samples=0))
    world.run_until(lambda: len(world.streamed.get("a", [])) > 60)
    world.request(Played(id="a", samples=10 * world_module.TOKEN_SAMPLES))
    world.run(0.1)
    world.request(Cancel(id="a"))
    assert 9 <= world.events_of(Cancelled)[0].chars <= 11


def test_an_utterance_changes_hands_when_its_sound_does() -> None:
    world = World()
    world.speak(LONG, output="stream", client=b"first")
    world.run(0.1)
    machine = world.machine
    (uid,) = machine.state.utterances
    attach = Requested(b"second", False, Attach(id="a", from_sample=2400, confirms=True))
    views = world._views()
    slot = machine.state.outputs[(b"first", "default")].slot
    machine.handle(Observed({slot: replace(views[slot], oldest={uid: 2401})}), world.now_s)
    (refused,) = machine.handle(attach, world.now_s)
    assert isinstance(refused, ToClient)
    assert isinstance(refused.event, Rejected)
    assert refused.event.field == "from_sample"
    assert machine.state.utterances[uid].client == b"first"
    assert Confirm(uid, 5) in machine.handle(Requested(b"first", False, Received(id="a", samples=5)), world.now_s)
    machine.handle(Observed({slot: replace(views[slot], oldest={uid: 2400})}), world.now_s)
    assert Reattach(uid, b"second", 2400, True) in machine.handle(attach, world.now_s)
    assert machine.state.utterances[uid].client == b"second"
    assert machine.state.utterances[uid].record.confirms
    assert not machine.handle(Requested(b"first", False, Received(id="a", samples=9)), world.now_s)
    assert Confirm(uid, 9) in machine.handle(Requested(b"second", False, Received(id="a", samples=9)), world.now_s)
    again = Requested(b"first", False, Speak(id="a", text=LONG, output="stream"))
    (refused,) = machine.handle(again, world.now_s)
    assert isinstance(refused, ToClient)
    assert isinstance(refused.event, Rejected), "it is spoken once, and not here any more"


@pytest.mark.parametrize("role", ["t3", "s3gen"])
@pytest.mark.parametrize("seed", range(4))
def test_killed_engine_workers_repeat_and_lose_nothing(role: str, seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    world.speak(LONG * 4, id="speaker")
    world.speak(LONG * 4, id="stream", output="stream", client=b"listener")
    while not done(world, "speaker", "stream"):
        world.run(rng.uniform(0.01, 1.5))
        world.kill(role)
        assert world.now_s < 1000
    assert heard(world) == plain(LONG * 4)
    assert plain("".join(x[0] for x in world.streamed["stream"] if x)) == plain(LONG * 4)


@pytest.mark.parametrize("seed", range(6))
def test_killed_dispatcher_goes_on_from_its_journal(seed: int) -> None:
    rng = random.Random(seed)
    world = World()
    world.speak(LONG * 4, id="speaker")
    world.speak("And this comes after it.", id="next")
    world.speak(LONG * 4, id="stream", output="stream", client=b"listener")
    while not done(world, "speaker", "next", "stream"):
        world.run(rng.uniform(0.01, 1.5))
        world.kill_dispatcher()
        assert world.now_s < 1000
    assert heard(world) == plain(LONG * 4 + "And this comes after it.")
    assert plain("".join(x[0] for x in world.streamed["stream"] if x)) == plain(LONG * 4)


def test_a_growing_text_survives_the_dispatcher() -> None:
    world = World()
    world.speak("", final=False)
    rng = random.Random(1)
    at = 0
    while at < len(LONG):
        piece = LONG[at : at + rng.randint(1, 9)]
        at += len(piece)
        world.request(Text(id="a", text=piece))
        world.run(rng.uniform(0.0, 0.3))
        if rng.random() < 0.3:
            world.kill_dispatcher()
    world.request(End(id="a"))
    world.run_until(lambda: done(world, "a"))
    assert heard(world) == plain(LONG)


@pytest.mark.parametrize("role", ["t3", "s3gen"])
def test_a_segment_that_kills_its_worker_is_given_up_and_the_rest_spoken(role: str) -> None:
    world = World(poison={role: "POISON"})
    text = "This is fine. Here is POISON for you. And this is fine again."
    world.speak(text)
    world.run_until(lambda: done(world, "a"))
    sound = heard(world)
    assert sound.startswith("Thisisfine.")
    assert sound.endswith("Andthisisfineagain.")
    assert "POISON" not in sound
    failed = world.events_of(Failed)[0]
    assert "POISON" in text[failed.chars[0] : failed.chars[1]]
    assert not failed.final
    assert world.events_of(Finished)[0].failed_segments == 1


def test_an_utterance_of_which_nothing_could_be_spoken_has_failed() -> None:
    world = World(poison={"t3": "POISON"})
    world.speak("POISON.")
    world.run_until(lambda: done(world, "a"))
    assert [event.final for event in world.events_of(Failed)] == [False, True]
    assert not world.events_of(Finished)


@pytest.mark.parametrize("ear_behind_s", [0.0, 0.1])
def test_a_sound_that_is_heard_was_made_though_its_worker_has_not_said_so(ear_behind_s: float) -> None:
    world = World()
    world.ear_behind_s = ear_behind_s
    world.silent = {"s3gen"}
    world.speak("Hello.")
    world.run_until(lambda: bool(world.events_of(Started)))
    world.silent = set()
    world.run_until(lambda: done(world, "a"))
    finished = world.events_of(Finished)[0]
    assert finished.first_audio_ms == finished.started_ms == world.events_of(Started)[0].latency_ms
    latencies = {hop: window.summary() for hop, window in world.machine.state.counters.latencies.items()}
    assert finished.started_ms >= latencies["first_tokens"].last_ms > 0
    assert latencies["first_pcm"].count == 1


def test_a_new_dispatcher_does_not_tell_the_start_again() -> None:
    world = World()
    world.speak(LONG)
    world.run(1.0)
    world.kill_dispatcher()
    world.run_until(lambda: done(world, "a"))
    assert len(world.events_of(Started)) == 1
    assert world.events_of(Finished)[0].first_audio_ms < 100


def test_speaking_again_with_the_same_id_changes_nothing() -> None:
    world = World()
    world.speak("Hello there.")
    world.speak("Hello there.")
    world.run_until(lambda: done(world, "a"))
    assert heard(world) == "Hellothere."
    world.speak("Hello there.")
    world.run(2)
    assert heard(world) == "Hellothere."
    assert [e.state for e in world.events_of(Accepted)] == ["queued", "queued", "finished"]
    assert len(world.events_of(Finished)) == 2


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Speak(id="x", text=""), "text"),
        (Speak(id="x", text="a" * 100_001), "text"),
        (Speak(id="x", text="Hi.", voice="nobody"), "voice"),
        (Speak(id="x", text="Hi.", language="xx"), "language"),
        (Speak(id="x", text="Hi.", settings={"warmth": 3}), "settings.warmth"),
        (Text(id="nope", text="x"), "id"),
        (End(id="nope"), "id"),
        (Attach(id="nope"), "id"),
        (Cancel(), "id"),
    ],
)
def test_bad_requests_are_rejected_by_field(request_: object, field: str) -> None:
    world = World()
    world.request(request_)
    rejected = world.events_of(Rejected)
    assert [e.field for e in rejected] == [field]
    assert not world.machine.state.utterances


def test_queue_limit_is_named() -> None:
    config = msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, max_queued=3))
    world = World(config)
    for number in range(4):
        world.speak("Hello.", id=str(number))
    assert "text.max_queued" in world.events_of(Rejected)[0].reason


def test_too_long_a_speech_stops_at_its_limit() -> None:
    config = msgspec.structs.replace(Config(), text=msgspec.structs.replace(Config().text, max_audio_s=5.0))
    world = World(config)
    world.speak(LONG * 3)
    world.run_until(lambda: done(world, "a"))
    assert 4.0 < world.events_of(Finished)[0].seconds < 12.0
    assert "text.max_audio_s" in world.events_of(Failed)[0].reason


def test_ping_goes_through_the_work_loops_and_status_tells_the_queues() -> None:
    world = World()
    world.speak(LONG)
    world.run(1.0)
    world.request(Ping())
    world.run(0.1)
    assert set(world.events_of(Pong)[0].workers_ms) == {"t3-0", "s3gen-0"}
    world.request(Status())
    report = world.events_of(StatusReport)[0]
    assert report.queues["ring"].mean > 0
    assert report.healthy
    assert report.speaking[0].id == "a"


def test_the_timeline_tells_watchers_once_what_each_stage_did_and_when() -> None:
    world = World()
    world.request(Watch(every_ms=100, timeline=True))
    world.request(Watch(every_ms=100), client=b"other")
    world.speak(LONG)
    world.run_until(lambda: done(world, "a"))
    world.run(0.2)
    told = {client: [e for c, e in world.events if c == client and isinstance(e, State)] for client, _ in world.events}
    work = [one for state in told.pop(b"other") for one in state.timeline]
    assert not work
    work = [one for states in told.values() for state in states for one in state.timeline]
    seconds = world.events_of(Finished)[0].seconds
    for worker in ("t3-0", "s3gen-0", "player-0"):
        mine = [one for one in work if one.worker == worker]
        assert sum(one.speech_s for one in mine) == pytest.approx(seconds, abs=0.01)
        assert all(0 <= one.from_s <= one.to_s for one in mine)
        assert all(before.to_s <= after.to_s for before, after in itertools.pairwise(mine))
    begun = {worker: min(one.from_s for one in work if one.worker == worker) for worker in ("t3-0", "player-0")}
    assert begun["t3-0"] <= begun["player-0"] < max(one.to_s for one in work if one.worker == "t3-0")


def test_a_timeline_that_nobody_reads_is_forgotten() -> None:
    timeline = Timeline()
    for number in range(1000):
        timeline.add(Work("t3-0", "a", number, number + 1, 0.4))
    assert len(timeline.since(0)) < 1000
    assert [one.from_s for one in timeline.since(998)] == [998, 999]
    assert timeline.since(1000) == ()


def test_req_clients_get_one_answer_and_nothing_else() -> None:
    world = World()
    world.request(Speak(id="r", text="Hello."), req=True)
    world.run(3.0)
    assert [type(e) for _, e in world.events] == [Accepted]
    world.request(Speak(id="s", text="Hello.", output="stream"), req=True)
    assert world.events_of(Rejected)[0].field == "output"


def test_recordings_that_come_and_go_are_voices_as_long_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cloning = msgspec.structs.replace(world_module.TOKEN_FACTS, cloning=True)
    monkeypatch.setattr(world_module, "TOKEN_FACTS", cloning)
    world = World()
    own = {voice.id for voice in cloning.voices}

    def listed() -> set[str]:
        world.request(Voices())
        return {voice.id for voice in world.events_of(VoiceList)[-1].voices}

    world.run(1.0)
    assert listed() == own
    for there in (("Ann",), ("Ann", "Bea"), ("Bea",), ()):
        world._do(world.machine.handle(VoicesFound(there), world.now_s))
        assert listed() == own | set(there)
    world.speak("Hello.", voice="Bea")
    assert world.events_of(Rejected)[-1].field == "voice"
