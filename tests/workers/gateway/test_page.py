"""The page in a real headless Chromium, in front of the real processes."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from chatterline import Client
from perf.chat_server import ChatServer, tokens_of
from tests.harness import Pipeline, trimmed, until
from tests.workers.gateway.browser import Listener, Pcm, chromium
from tests.workers.gateway.standalone import gateway

pytestmark = [pytest.mark.slow, pytest.mark.browser]

FADE_SAMPLES = 120
BLOCK_SAMPLES = 128
OVERFLOWING = """() => [...document.querySelectorAll("main *, header *")].filter((node) => {
    const box = node.getBoundingClientRect();
    const shown = box.width && !node.closest(".hidden, [role=tablist]");
    return shown && box.right > document.documentElement.clientWidth + 1;
}).map((node) => node.outerHTML.slice(0, 80))"""
LONG = (
    "This is a long text that nobody wants to hear to its end, since it says nothing new. It goes on and on, one "
    "sentence follows the other, and each of them is as empty as the one before. "
) * 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def listener(browser: Browser, speaking: Pipeline) -> Iterator[Listener]:
    """The page, opened and listened to. No test may leave a complaint in the browser's console."""
    with browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", bypass_csp=True) as context:
        one = Listener(context, speaking.url)
        one.open()
        yield one
        assert one.complaints == []
        assert all(url.startswith(speaking.url) for url in one.asked), one.asked


def says(listener: Listener, text: str, until_s: float = 0.0) -> int:
    """Have a text spoken to its end, or until so much was heard; the number of its WebSocket. A machine that is too
    busy may let the page's sound run dry, which the page then says: another try."""
    for _ in range(4):
        number = len(listener.sockets)
        listener.say(text)
        if until_s:
            listener.wait_heard(until_s)
        else:
            listener.wait_state(number, "done")
        listener.wait_longer()
        if "ran dry" not in listener.page.inner_text(f".said-list > li:nth-child({number + 1}) .facts"):
            return number
        listener.page.press("#text", "Escape")
        listener.page.evaluate("() => { window.heardBlocks = []; window.soundingBlocks = 0; }")
    raise AssertionError("in none of four tries the machine was quick enough to play without a gap")


def silent(speaking: Pipeline) -> None:
    """Wait until the pipeline has nothing to do any more."""
    with Client(speaking.to) as client:
        until(lambda: client.status().queued == 0, "nothing is spoken any more")


def lengths_of_silence(sound: Pcm) -> np.ndarray:
    """Length of each run of zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sound == 0, [0]]).astype(int)))
    return edges[1::2] - edges[::2]


def test_what_is_written_is_heard_sample_for_sample(listener: Listener) -> None:
    number = says(listener, "Good morning. This is heard to its last sample, and nothing in between is missing.")
    sent = listener.sent(number)
    assert len(sent) > 24_000
    np.testing.assert_array_equal(trimmed(listener.heard()), trimmed(sent))
    assert listener.told(number)[-1]["type"] == "end"


def test_what_is_typed_is_heard_before_it_is_complete(listener: Listener) -> None:
    page = listener.page
    page.check("#live")
    page.locator("#text").press_sequentially("First this is said, then ", delay=5)
    listener.wait_heard(0.4)
    assert page.input_value("#text") == "First this is said, then "
    page.locator("#text").press_sequentially("that, and now the end", delay=5)
    page.press("#text", "Enter")
    listener.wait_state(0, "done")
    assert page.inner_text(".said-list .text") == "First this is said, then that, and now the end"
    assert len(listener.sockets) == 1  # one utterance, in one voice, all the time
    sent = listener.sent(0)
    listener.wait_longer()
    heard = trimmed(listener.heard())
    # Where the writer was slower than the voice there is silence between; what was sent is all there, in order.
    gaps = np.cumsum([0, *lengths_of_silence(heard)])
    assert len(heard) - gaps[-1] <= len(sent)
    loud = heard[np.abs(heard) > 300]
    assert len(loud) == pytest.approx(len(sent[np.abs(sent) > 300]), abs=4 * FADE_SAMPLES)


def test_a_change_in_what_has_gone_does_not_repeat_or_swallow_what_comes_after(listener: Listener) -> None:
    page = listener.page
    page.check("#live")
    page.select_option("#grain", "word")
    text = page.locator("#text")
    text.press_sequentially("One two three ", delay=5)
    listener.wait("() => document.querySelector('.said-list .text')?.textContent.startsWith('One two three')")
    text.press("Home")
    text.press_sequentially("And ", delay=5)
    text.press("End")
    text.press_sequentially("four", delay=5)
    text.press("Enter")
    listener.wait_state(0, "done")
    assert page.inner_text(".said-list .text") == "One two three four"


def test_stop_in_mid_sentence_is_silence_at_once_and_no_work_goes_on(listener: Listener, speaking: Pipeline) -> None:
    number = says(listener, LONG, until_s=0.6)
    listener.page.press("#text", "Escape")
    listener.wait_state(number, "stopped")
    silent(speaking)
    listener.wait_longer()  # what was heard before the stop is told in groups of blocks, and may still be on its way
    before = len(listener.heard())
    listener.wait_longer()
    heard, sent = listener.heard(), listener.sent(number)
    assert not heard[before:].any()
    played = trimmed(heard)
    first = np.flatnonzero(sent)[0]
    exact = len(played) - FADE_SAMPLES
    np.testing.assert_array_equal(played[:exact], sent[first : first + exact])
    assert (
        np.abs(played[exact:].astype(int)) <= np.abs(sent[first + exact : first + len(played)].astype(int)) + 1
    ).all()
    assert len(played) < len(sent) / 2
    struck = listener.page.inner_text(".said-list > li:last-child .rest")
    assert struck
    assert struck in LONG
    listener.say("And this is heard again.")
    listener.wait_state(number + 1, "done")


def test_two_conversations_speak_one_after_the_other_each_in_its_own_voice(listener: Listener) -> None:
    page = listener.page
    page.select_option("#voice", "en-us+f3")
    listener.say("This is the first conversation.")
    page.click("#new-conversation")
    page.select_option("#language", "fr")
    assert page.input_value("#voice").startswith("fr")
    listener.say("Voici la deuxième.")
    assert page.is_disabled("#voice")  # it is kept from now on
    listener.say("Elle garde sa voix.")
    page.get_by_role("tab", name="Conversation 1").click()
    assert page.input_value("#voice") == "en-us+f3"
    listener.say("And this comes last.")
    listener.wait_state(1, "done")
    listener.wait_longer()
    sent = [listener.sent(number) for number in range(4)]
    heard = trimmed(listener.heard())
    at = 0
    for one in map(trimmed, sent):
        while not heard[at]:
            at += 1
        np.testing.assert_array_equal(heard[at : at + len(one)], one)
        at += len(one)
    assert not heard[at:].any()


def test_what_was_spoken_can_be_saved_and_heard_again(listener: Listener, tmp_path: Path) -> None:
    page = listener.page
    listener.say("Keep this.")
    listener.wait_state(0, "done")
    with page.expect_download() as download:
        page.get_by_role("button", name="WAV: Keep this.").click()
    download.value.save_as(tmp_path / "kept.wav")
    with wave.open(str(tmp_path / "kept.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        saved = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_array_equal(saved, listener.sent(0))
    listener.wait_longer()  # the end of the first hearing is told in groups of blocks, and may still be on its way
    before = len(listener.heard())
    page.get_by_role("button", name="Again: Keep this.").click()
    listener.wait_longer(len(saved) / 24_000 + 0.5)
    np.testing.assert_array_equal(trimmed(listener.heard()[before:]), trimmed(saved))
    assert len(listener.sockets) == 1


def test_a_text_longer_than_anyone_waits_for_is_not_made_all_at_once(listener: Listener) -> None:
    listener.say(LONG * 20)
    listener.wait_heard(3.0)
    heard = listener.page.evaluate("() => window.soundingBlocks") * BLOCK_SAMPLES
    assert len(listener.sent(0)) < heard + 24_000 * 60  # of more than ten minutes
    listener.page.click("#stop")
    listener.wait_state(0, "stopped")


def test_the_picture_shows_every_stage_at_work(listener: Listener) -> None:
    page = listener.page
    listener.say("The picture shows how this is made.")
    for words in ("T3 made", "S3Gen made", "this page played"):
        listener.wait("words => document.querySelector('#timeline-words').textContent.includes(words)", words)
    names = page.locator("#stages .stage:visible .name").all_inner_texts()
    assert names == ["Text", "T3", "Tokens", "S3Gen", "For programs"]  # and no loudspeaker, as configured
    assert page.locator("#stages .worker[data-good=true]:visible").count() == 2
    listener.wait_state(0, "done")
    assert page.locator("#latencies tbody tr").count() >= 2
    painted = page.evaluate(
        """() => {
            const canvas = document.querySelector("#timeline");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    assert painted > 4


def test_everything_has_a_name_and_can_be_reached_by_keyboard(listener: Listener) -> None:
    page = listener.page
    for box in ("#settings-box", "#model-box"):
        page.click(f"{box} summary")
    listener.say("A word.")
    listener.wait_state(0, "done")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    told = []
    for node in tree:
        properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
        if properties.get("focusable") and not node.get("ignored") and node["role"]["value"] != "RootWebArea":
            told.append((node["role"]["value"], node.get("name", {}).get("value", "")))
    assert len(told) > 15
    assert [one for one in told if not one[1].strip()] == []
    page.focus(".skip")
    reached = ["skip"]
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
        )
        if name == "BODY":
            break
        reached.append(name)
    order = ["skip", "theme", "new-conversation", "transcript", "text", "live", "speak", "speed", "model-url"]
    assert [name for name in reached if name in order] == order
    landmarks = page.evaluate("[...document.querySelectorAll('main, header, h1, h2')].map(e => e.tagName)")
    assert landmarks.count("H1") == 1
    assert "MAIN" in landmarks


def test_tabs_are_moved_through_with_arrow_keys(listener: Listener) -> None:
    page = listener.page
    page.click("#new-conversation")
    first, second = page.get_by_role("tab").all()
    assert second.get_attribute("aria-selected") == "true"
    second.press("ArrowLeft")
    assert first.get_attribute("aria-selected") == "true"
    listener.wait("() => document.activeElement.textContent === 'Conversation 1'")
    first.press("Delete")
    listener.wait("() => document.querySelectorAll('[role=tab]').length === 1")


def test_under_its_own_policy_nothing_overflows_and_all_text_can_be_read(browser: Browser, speaking: Pipeline) -> None:
    with browser.new_context(locale="en-GB") as context:
        listener = Listener(context, speaking.url, listen=False)
        page = listener.open()
        listener.say("Something to look at, with a few words more than fit into a single line of a narrow page.")
        listener.wait_state(0, "speaking")
        listener.wait("() => document.querySelector('.said-list .heard').textContent")
        for mode in ("Read aloud", "Ask a model"):
            page.get_by_text(mode, exact=True).click()
            for width in (360, 820, 1440):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate(OVERFLOWING) == [], (mode, width)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert listener.poor_contrasts() == [], scheme
        page.keyboard.press("Escape")
        assert listener.complaints == []


# ---------------------------------------------------------------- a language model


def test_a_model_is_heard_while_it_writes_and_is_told_only_what_was_heard(browser: Browser, speaking: Pipeline) -> None:
    answers = {"How?": LONG * 4, "And then?": "Then comes the end."}
    script = lambda messages: tokens_of(next(a for q, a in answers.items() if messages[-1]["content"].endswith(q)))  # noqa: E731
    with ChatServer(script, first_ms=100, token_ms=20) as chat:
        with gateway(speaking.to, f"chat_url={chat.url}") as own, browser.new_context(bypass_csp=True) as context:
            listener = Listener(context, own.url)
            page = listener.open()
            page.get_by_text("Ask a model").click()
            listener.say("How?")
            listener.wait_heard(1.0)
            assert "first token" in page.inner_text(".said-list .facts")
            listener.say("And then?")
            listener.wait_state(0, "stopped")
            written = page.inner_text(".said-list > li:nth-child(1) .text")
            listener.wait_state(1, "done")
            assert page.inner_text(".said-list > li:nth-child(2) .text") == answers["And then?"]
            assert listener.complaints == []
        system, first, heard, second = chat.requests[1]["messages"]
        assert [system["role"], first["content"], second["content"]] == ["system", "How?", "And then?"]
        assert answers["How?"].startswith(heard["content"])
        assert 2 <= len(heard["content"].split()) < len(written.split()) - 2
        until(lambda: chat.hung_up == 1, "the model is told to stop")


# ---------------------------------------------------------------- a key, and a voice from a recording


def test_the_browser_itself_calls_the_model_whose_address_it_is_given(browser: Browser, speaking: Pipeline) -> None:
    with ChatServer(lambda _: tokens_of("Yes, it is me."), first_ms=10, token_ms=5) as chat:
        with browser.new_context() as context:
            listener = Listener(context, speaking.url, listen=False)
            page = listener.open()
            page.get_by_text("Ask a model").click()
            page.get_by_label("Address").fill(chat.url)
            page.get_by_label("Key", exact=True).last.fill("its-key")
            listener.say("Is it you?")
            listener.wait_state(0, "done")
            assert page.inner_text(".said-list .text") == "Yes, it is me."
            assert listener.complaints == []
        assert chat.requests[0]["model"] == "paced"  # the first that it lists
        assert chat.headers[0]["Authorization"] == "Bearer its-key"
        chat.fail_with = (503, "the model is asleep")
        with browser.new_context() as context:
            listener = Listener(context, speaking.url, listen=False)
            page = listener.open()
            page.get_by_text("Ask a model").click()
            page.get_by_label("Address").fill(chat.url)
            listener.say("And now?")
            listener.wait_state(0, "failed")
            assert "the model is asleep" in page.inner_text(".said-list .problem")


def test_with_keys_the_page_asks_for_one_and_says_when_it_is_wrong(browser: Browser, speaking: Pipeline) -> None:
    key = "a-key-that-nobody-guesses-0123456789"
    with gateway(speaking.to, f"api_keys=[{key}]") as own, browser.new_context() as context:
        listener = Listener(context, own.url, listen=False)
        page = listener.page
        page.goto(own.url)
        page.fill("#key", "wrong")
        page.get_by_role("button", name="Open").click()
        page.wait_for_selector("#key-problem:not(:empty)")
        page.fill("#key", key)
        page.press("#key", "Enter")
        page.wait_for_selector('#health[data-good="true"]')
        listener.say("Open.")
        listener.wait_state(0, "done")
        assert len(listener.sent(0)) > 2400


def recording(path: Path, seconds: float, level: float = 0.3) -> Path:
    """A hum as a WAV file."""
    time_s = np.arange(int(seconds * 16_000)) / 16_000
    samples = (level * 32767 * np.sin(2 * np.pi * 150 * time_s)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path


def test_a_recording_is_looked_at_and_becomes_a_voice(browser: Browser, tmp_path: Path) -> None:
    one = Pipeline("babble", {"gateway.bind": "127.0.0.1:0", "gateway.max_upload_s": 20})
    try:
        with browser.new_context(bypass_csp=True) as context:
            listener = Listener(context, one.url)
            page = listener.open()
            page.click("#record-box summary")
            page.set_input_files("#recording", recording(tmp_path / "short.wav", 0.5))
            listener.wait("() => document.querySelector('#recording-verdict').textContent.startsWith('Too short')")
            assert page.is_disabled("#recording-send")
            page.set_input_files("#recording", recording(tmp_path / "anna.wav", 6.0))
            listener.wait("() => document.querySelector('#recording-verdict').textContent.startsWith('Good')")
            assert page.inner_text("#recording-duration") == "6.0 s"
            assert page.inner_text("#recording-level") == "-13.5 dB"
            page.fill("#recording-name", "anna")
            page.click("#recording-send")
            listener.wait("() => document.querySelector('#recording-verdict').textContent.startsWith('Added')")
            assert page.input_value("#voice") == "anna"
            listener.say("Spoken like her.")
            listener.wait_state(0, "done")
            assert listener.complaints == []
        assert "anna" in [voice.id for voice in one.client().voices().voices]
        assert one.stop() == 0, one.log()
    finally:
        one.close()
