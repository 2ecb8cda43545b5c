"""A real browser for the tests of the page: Debian's Chromium, headless, driven by Playwright.

`Listener` hears what the page plays: it connects a worklet of its own beside the loudspeaker's way out and
keeps every sample that comes there, with the sound that came over the page's WebSockets to compare with. The
page's policy forbids such foreign scripts, so its context has to be made with ``bypass_csp``.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, WebSocket, sync_playwright

from tests.harness import until

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Pcm = npt.NDArray[np.int16]

LISTEN = """
window.heardBlocks = [];
window.soundingBlocks = 0;
const CAPTURE = `
class Capture extends AudioWorkletProcessor {
  constructor() { super(); this.kept = []; }
  process([[heard]]) {
    this.kept.push(heard ? heard.slice() : new Float32Array(128));
    if (this.kept.length === 16) { this.port.postMessage(this.kept); this.kept = []; }
    return true;
  }
}
registerProcessor("capture", Capture);
`;
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  const result = connect.call(this, target, ...rest);
  if (this instanceof AudioWorkletNode && target === this.context.destination) {
    const { context } = this;
    context.audioWorklet.addModule(URL.createObjectURL(new Blob([CAPTURE], { type: "text/javascript" }))).then(() => {
      const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 1 });
      capture.port.onmessage = ({ data }) => {
        window.heardBlocks.push(...data);
        for (const block of data) if (block.some((x) => x !== 0)) window.soundingBlocks += 1;
      };
      connect.call(this, capture);
      connect.call(capture, context.destination);
      window.listening = true;
    });
  }
  return result;
};
"""


CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = ([r, g, b]) => [r, g, b].reduce((sum, v, i) => {
        v /= 255;
        return sum + [0.2126, 0.7152, 0.0722][i] * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    }, 0);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const found = rgb(getComputedStyle(node).backgroundColor);
            if (found[3] === 255) return found;
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.closest(":disabled, option, .hidden, .skip")) continue;
        const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        const what = `${node.tagName}.${node.className} ${node.textContent.slice(0, 30)}`;
        if (ratio < 4.5) poor.push(`${what} ${ratio.toFixed(2)}`);
    }
    return poor;
}"""
"""Text whose contrast to what is behind it is below 4.5."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; the test is skipped where there is none."""
    if not shutil.which(CHROMIUM):
        pytest.skip("no Chromium here (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Listener:
    """A page that is looked at and, with ``listen``, listened to."""

    def __init__(self, context: BrowserContext, url: str, listen: bool = True) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.sockets: list[list[bytes | str]] = []
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self._url = url
        self.page.on("websocket", self._opened)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)
        self._listen = listen
        if listen:
            self.page.add_init_script(LISTEN)

    def open(self) -> Page:
        """Load the page and wait until the pipeline is said to be ready, and its sound is listened to."""
        self.page.goto(self._url)
        self.page.wait_for_selector('#health[data-good="true"]')
        self.page.locator("#text").press("Shift")  # the first key that is pressed makes sound possible
        if self._listen:
            self.wait("() => window.listening")
        return self.page

    def wait(self, script: str, argument: object = None) -> None:
        """Wait until a function in the page gives something true."""
        until(lambda: self.page.evaluate(script, argument), f"in the page: {script}", 30.0, every_s=0.05)

    def say(self, text: str) -> None:
        """Write a text into the box and press Enter."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def wait_state(self, number: int, state: str) -> None:
        """Wait until the utterance of this number (in the conversation shown, from 0) is in this state."""
        self.page.wait_for_selector(f'.said-list > li:nth-child({number + 1})[data-state="{state}"]')

    def wait_heard(self, seconds: float) -> None:
        """Wait until so much sound was captured, silence left out."""
        self.wait("blocks => window.soundingBlocks > blocks", int(seconds * 24_000 / 128))

    def wait_longer(self, seconds: float = 0.2) -> None:
        """Wait until so much more was captured, be it silence."""
        self.wait(
            "blocks => window.heardBlocks.length > blocks",
            self.page.evaluate("() => window.heardBlocks.length") + int(seconds * 24_000 / 128),
        )

    def poor_contrasts(self) -> list[str]:
        """Text that is hard to read in front of what is behind it."""
        found: list[str] = self.page.evaluate(CONTRASTS)
        return found

    def sent(self, number: int) -> Pcm:
        """The sound that came over the WebSocket of this number, from 0."""
        frames = [frame for frame in self.sockets[number] if isinstance(frame, bytes)]
        return np.frombuffer(b"".join(frames), "<i2")

    def told(self, number: int) -> list[dict[str, Any]]:
        """The messages that came over it."""
        return [json.loads(frame) for frame in self.sockets[number] if isinstance(frame, str)]

    def heard(self) -> Pcm:
        """Every sample that has left the page's loudspeaker so far, silence included."""
        flat = self.page.evaluate(
            """() => {
                const all = new Float32Array(window.heardBlocks.length * 128);
                window.heardBlocks.forEach((block, i) => all.set(block, i * 128));
                const bytes = new Uint8Array(all.buffer);
                let text = "";
                for (let at = 0; at < bytes.length; at += 0x8000)
                    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
                return btoa(text);
            }"""
        )
        exact = np.frombuffer(base64.b64decode(flat), "<f4") * 32768
        return np.rint(exact).astype(np.int16)

    def _opened(self, socket: WebSocket) -> None:
        if not socket.url.endswith("/ws/tts/live"):
            return
        frames: list[bytes | str] = []
        self.sockets.append(frames)
        socket.on("framereceived", lambda frame: frames.append(frame))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)
