"""`make demo`: start the pipeline, speak a paragraph with the built-in voice, show what it took, stop.

A program like any other: it starts the real `launch` in a process of its own, on a free port, and
speaks over the public text socket. Sound goes to the sound card; where there is none, into demo.wav.
Exit code 0 when all of it was heard.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ipc.client_blocking import Client
from ipc.client_errors import ChatterlineError
from ipc.messages import Finished, Progress, Started, StatusReport
from launch.table import environment
from pipeline.config import ConfigError, load_config

TEXT = (
    "Hello. This is Chatterline, speaking with its built-in voice. "
    "It turns text into speech while the text is still being written. "
    "Every stage of it runs in a process of its own; "
    "when one of them fails, another takes over, and not a sample is lost. "
    "Interrupt it, and it is silent at once, and knows which words you have heard."
)
FALLBACK = "demo.wav"
CONFIG = Path("pipeline.yaml")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
SHOWN_LINES = 15
_DESCRIBE = """
import sys, msgspec
from pipeline.config import Player
from workers.sound_choice import describe
print(describe(msgspec.json.decode(sys.argv[1], type=Player)))
"""


class DemoError(Exception):
    """The demo cannot go on; the message says what the pipeline said last."""


def main() -> int:
    """Run the demo; returns the exit code."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chatterline-demo-") as folder:
        try:
            with _pipeline(Path(folder)) as running:
                print(f"ready after {time.monotonic() - began:.1f} s: {running.reason}", flush=True)
                with Client(running.to) as client:
                    _speak(client, running.sound_file)
        except (DemoError, ChatterlineError, ConfigError) as error:
            print(f"\nthe demo failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
    print("\nTo keep it running: make run. To speak from another terminal: .venv/bin/speak 'Hello.'")
    return 0


# --------------------------------------------------------------------------- the pipeline


class _Running:
    """The pipeline's process, and what it said about itself. ``sound_file``: "" with a sound card."""

    def __init__(self, folder: Path, sound_file: str) -> None:
        self.sound_file = sound_file
        self._printed = folder / "launch.out"
        output = f"wav:{sound_file}" if sound_file else "auto"
        settings = {
            "model.engine": "espeak",
            "text.bind": "tcp://127.0.0.1:0",
            "text.curve": "",
            "gateway.bind": "off",
            "gateway.wyoming": "off",
            "player.output": output,
            "player.pace": "realtime",
            "supervise.run_dir": "",
            "supervise.state_dir": str(folder / "state"),
        }
        command = [sys.executable, "-m", "launch", "--no-view"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment(),
                start_new_session=True,
            )  # fmt: skip

    @property
    def printed(self) -> str:
        return self._printed.read_text(encoding="utf-8", errors="replace")

    @property
    def to(self) -> str:
        """The text address."""
        return self._said(r"text socket (\S+?),? ")

    @property
    def reason(self) -> str:
        """Which engine speaks, and why."""
        return self._said(r"(engine .*)")

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.printed)
        if found is None:
            raise DemoError(f"launch did not say what was expected of it{self.last_lines()}")
        return found[1]

    def wait_ready(self) -> None:
        """Wait until all processes are ready; raises `DemoError` when they are not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not re.search(r"supervisor +ready in ", self.printed):
            if self.process.poll() is not None:
                raise DemoError(f"launch ended with exit code {self.process.returncode}{self.last_lines()}")
            if time.monotonic() > deadline:
                raise DemoError(f"the pipeline was not ready within {START_TIMEOUT_S:g} s{self.last_lines()}")
            time.sleep(0.02)

    def last_lines(self) -> str:
        """What launch printed last, for a message."""
        lines = self.printed.splitlines()[-SHOWN_LINES:]
        return "; it printed\n" + "\n".join(f"    {line}" for line in lines) if lines else "; it printed nothing"

    def stop(self) -> int:
        """Ask it to leave, wait, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DemoError(f"launch did not stop within {STOP_TIMEOUT_S:g} s{self.last_lines()}") from None


@contextlib.contextmanager
def _pipeline(folder: Path) -> Iterator[_Running]:
    """The pipeline, ready; stopped in order at the end."""
    sound, why = _where_sound_goes()
    print(f"sound goes to {sound or FALLBACK}{why}", flush=True)
    print("starting dispatcher, t3, s3gen and player", flush=True)
    running = _Running(folder, "" if sound else FALLBACK)
    try:
        running.wait_ready()
        yield running
    except ChatterlineError as error:
        raise DemoError(f"{error}{running.last_lines()}") from error
    finally:
        code = running.stop()
    if code:
        raise DemoError(f"launch ended with exit code {code}{running.last_lines()}")


def _where_sound_goes() -> tuple[str, str]:
    """The sound card, or "" and why there is none. In a process of its own: sound libraries print and may crash."""
    configured = load_config(CONFIG if CONFIG.exists() else None).player
    player = msgspec.structs.replace(configured, output="auto")
    command = [sys.executable, "-c", _DESCRIBE, msgspec.json.encode(player).decode()]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment(), check=False)
    except subprocess.TimeoutExpired:
        return "", " (the sound system does not answer)"
    said = asked.stdout.strip() if asked.returncode == 0 else ""
    if said.startswith("speaker "):
        return said.removeprefix("speaker "), ""
    reason = re.search(r"\((.*)\)", said)
    return "", f" ({reason[1]})" if reason else " (the sound system failed)"


# --------------------------------------------------------------------------- speaking


def _speak(client: Client, sound_file: str) -> None:
    """Speak the paragraph, show it as it is heard, then what it took."""
    print(f"\nspeaking {len(TEXT)} characters", flush=True)
    began = time.monotonic()
    starts = [0, *(found.end() for found in re.finditer(r"[.,;] ", TEXT)), len(TEXT)]
    shown = 0
    finished: Finished | None = None
    for event in client.speak(TEXT).events():
        if isinstance(event, Started):
            print("   at    heard", flush=True)
        heard = _heard_chars(event)
        while shown + 1 < len(starts) and heard > starts[shown]:
            print(f"{time.monotonic() - began:5.1f} s  {TEXT[starts[shown] : starts[shown + 1]]}", flush=True)
            shown += 1
        if isinstance(event, Finished):
            finished = event
    if finished is None:
        raise DemoError("the utterance ended without being heard to its end")
    report(finished, client.status(), sound_file)


def _heard_chars(event: object) -> int:
    """Up to where the text has been heard by now, as far as the event tells."""
    if isinstance(event, Progress | Finished):
        return event.chars
    return 1 if isinstance(event, Started) else 0


def report(finished: Finished, status: StatusReport, sound_file: str) -> None:
    """Print latency, queues and stages in plain lines."""
    print("\nfirst sound")
    if finished.first_audio_ms is not None:
        print(f"  {finished.first_audio_ms:7.1f} ms   from the request to the first sample in the ring")
    if finished.started_ms is not None:
        where = "in the file" if sound_file else "at the loudspeaker"
        print(f"  {finished.started_ms:7.1f} ms   from the request to the first sample {where}")
    print(f"  {finished.seconds:7.1f} s    of speech; the sound ran dry {finished.underruns} times")
    print("\nqueues            mean      most     bound")
    for name, fill in sorted(status.queues.items()):
        bound = f"{fill.bound:9.1f}" if fill.bound is not None else "        -"
        print(f"  {name:<16}{fill.mean:6.2f} {fill.most:9.2f} {bound}  {fill.unit}")
    print("\nstages            busy   waiting for input   waiting for output     CPU    memory")
    for stage in status.stages:
        known = stage.busy + stage.starved + stage.blocked > 0
        shares = [f"{share:.1%}" if known else "-" for share in (stage.busy, stage.starved, stage.blocked)]
        print(
            f"  {stage.worker:<13}{shares[0]:>7} {shares[1]:>19} {shares[2]:>20}"
            f" {stage.cpu_s:5.1f} s {stage.rss_bytes / 2**20:6.0f} MB"
        )
    if sound_file:
        print(f"\nthere is no sound card here, so the speech is in {sound_file}")


if __name__ == "__main__":
    sys.exit(main())
