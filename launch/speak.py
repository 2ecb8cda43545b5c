"""`speak`: send text to a running pipeline, or ask how it is.

    speak "Hello."                           spoken by the speaker; returns once the pipeline has it
    some_llm | speak -                       spoken as it comes; returns when it has been heard
    speak --out hello.wav --file book.txt    the sound into a file
    speak --chat URL "Why is the sky blue?"  a language model's answer, spoken while it is written
    speak --chat URL                         a question a line; each silences the answer before
    speak --cancel all

The pipeline is found at --to, else at text.bind of ./pipeline.yaml, else at tcp://127.0.0.1:5570.
Ctrl-C silences what this command speaks and waits for.

Exit codes:

    0    done: accepted, or with --wait, --out, --json, --chat and texts sent in pieces: heard or written
    1    refused or failed; the message says why
    2    wrong usage, configuration or file
    3    no pipeline answers
    4    silenced by somebody else before its end
    130  Ctrl-C
    143  SIGTERM
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ipc.client import DEFAULT_TO, SpeakOptions
from ipc.client_blocking import Client
from ipc.client_errors import ChatterlineError, PipelineError, SpeechCancelled
from launch import asking, speaking
from pipeline.config import ConfigError, load_config
from pipeline.config_rules import reachable

OK, REFUSED, USAGE, NO_PIPELINE, SILENCED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 130, 143
CONFIG = Path("pipeline.yaml")
CHAT = ("model", "system", "audio", "memory", "chat_key")
QUESTIONS = ("status", "ping", "voices", "cancel", "pause", "resume", "add_voice")


class Terminated(KeyboardInterrupt):
    """SIGTERM: leave as after Ctrl-C, with another exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    if fault := _usage(given):
        parser.error(fault)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _chat(given) if given.chat else _run(given)
    except PipelineError as error:
        return _say(error, NO_PIPELINE)
    except SpeechCancelled as error:
        return _say(error, SILENCED)
    except ChatterlineError as error:
        return _say(error, REFUSED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read it is gone: nothing more to flush there
        return REFUSED
    except (ConfigError, OSError, ValueError) as error:
        return _say(error, USAGE)
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    to, curve = _pipeline(given.to, given.curve)
    with Client(to, curve=curve) as client:
        if any(getattr(given, question) is not None for question in QUESTIONS):
            asking.ask(client, given)
        else:
            speaking.Speaking(client, _options(given), given).speak(speaking.source_of(given))
    return OK


def _chat(given: argparse.Namespace) -> int:
    from launch.chat import Where, chat

    return chat(Where(*_pipeline(given.to, given.curve)), _options(given), given)


def _pipeline(to: str | None, curve: str | None) -> tuple[str, str | None]:
    """Where the pipeline is, and the folder with our keys."""
    if to is not None or not CONFIG.exists():
        return to or DEFAULT_TO, curve
    text = load_config(CONFIG).text
    return reachable(text.bind), curve or text.curve or None


def _options(given: argparse.Namespace) -> SpeakOptions:
    """What the request says besides the text."""
    options: SpeakOptions = {}
    for name in ("voice", "language", "speed", "conversation", "priority", "seed"):
        if getattr(given, name) is not None:
            options[name] = getattr(given, name)
    if given.set:
        options["settings"] = dict(given.set)
    options["output"] = given.output or ("stream" if given.out else "speaker")
    return options


def _usage(given: argparse.Namespace) -> str:
    """What is wrong with the command line (empty: nothing)."""
    asked = [name for name in QUESTIONS if getattr(given, name) is not None]
    texts = bool(given.text) + bool(given.file)
    options = [f"--{question.replace('_', '-')}" for question in asked]
    if len(asked) > 1:
        return f"{' and '.join(options)} cannot be asked for at once"
    if asked and (texts or given.out):
        return f"{options[0]} speaks no text; give the text to a second command"
    if given.chat:
        if asked or given.file:
            return f"--chat asks a language model; leave {options[0] if asked else '--file'} away"
    elif lost := [f"--{name.replace('_', '-')}" for name in CHAT if getattr(given, name) is not None]:
        return f"{lost[0]} is for --chat URL"
    if not asked and texts != 1 and not given.chat:
        return "a text and --file cannot be given both" if texts else 'nothing to say: speak "Hello.", or speak --help'
    if given.output == "speaker" and given.out:
        return "--out is for sound that comes back; leave --output speaker away"
    if given.output == "stream" and not given.out:
        return "--output stream needs --out, a file for the sound (- for standard output)"
    if given.out == "-" and given.json:
        return "--out - and --json would both write to standard output"
    return ""


def _setting(text: str) -> tuple[str, bool | int | float | str]:
    """``name=value``; the value is a truth value, a number or a text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as in --set pitch=60")
    for convert in (_truth, int, float):
        try:
            return name, convert(value)
        except ValueError:
            continue
    return name, value


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(value)
    return value.lower() == "true"


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _say(error: Exception, code: int) -> int:
    print(f"speak: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    about, _, codes = (__doc__ or "").partition("Exit codes:")
    parser = argparse.ArgumentParser(
        "speak",
        description=about.replace("`speak`: s", "S").strip(),
        epilog="exit codes:" + codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    say = parser.add_argument_group("what to say")
    say.add_argument("text", nargs="*", help="the text; - reads standard input as it comes")
    say.add_argument("--file", metavar="FILE", help="the text is in this file, of any size (UTF-8)")
    say.add_argument("--voice", help="a voice of --voices")
    say.add_argument("--language", help="en, de, pt-br …")
    say.add_argument("--speed", type=float, help="0.25 to 4; 1 is the voice's own")
    say.add_argument("--conversation", help="texts of one conversation keep their order")
    say.add_argument("--priority", help="low, normal, high, or interrupt: silence what plays and go at once")
    say.add_argument("--seed", type=int, help="the same seed makes the same sound")
    say.add_argument(
        "--set", action="append", type=_setting, metavar="NAME=VALUE", help="a setting of the engine (see --voices)"
    )
    out = parser.add_argument_group("where to")
    out.add_argument(
        "--out", metavar="FILE", help="the sound into .wav, .flac, .pcm or .raw (s16le); - standard output"
    )
    out.add_argument("--output", choices=("speaker", "stream"), help="speaker, or stream, which --out implies")
    out.add_argument("--to", metavar="ADDRESS", help="the pipeline's text socket")
    out.add_argument("--curve", metavar="DIR", help="folder with server.key and client.key_secret")
    out.add_argument("--wait", action="store_true", help="return when it has been heard")
    out.add_argument("--json", action="store_true", help="print everything that happens, one JSON object a line")
    chat = parser.add_argument_group("a language model speaks")
    chat.add_argument("--chat", metavar="URL", help="its OpenAI-compatible endpoint, as http://localhost:8000/v1")
    chat.add_argument("--model", help="which of its models; the first if not given")
    chat.add_argument("--system", metavar="TEXT", help="what the model is told about its task")
    chat.add_argument("--audio", metavar="FILE", help="the question is this recording (wav, mp3, …)")
    chat.add_argument("--memory", metavar="FILE", help="go on with the conversation in this file, and keep it there")
    chat.add_argument("--chat-key", metavar="FILE", help="the endpoint's key is in this file")
    chat.add_argument(
        "--begin",
        choices=("auto", "word", "clause"),
        default="auto",
        help="the voice begins with the first word, or with the first clause, which sounds better; "
        "auto: the word where the engine is quick (default)",
    )
    ask = parser.add_argument_group("instead of speaking")
    ask.add_argument("--cancel", metavar="WHAT", help="silence: all, an utterance's id, or a conversation")
    ask.add_argument("--pause", action="store_true", default=None, help="hold the speaker")
    ask.add_argument("--resume", action="store_true", default=None, help="let it go on")
    ask.add_argument("--status", action="store_true", default=None, help="stages, queues, latencies, what is spoken")
    ask.add_argument("--voices", nargs="?", const="", metavar="FILTER", help="voices, languages and settings")
    ask.add_argument("--add-voice", nargs=2, metavar=("NAME", "FILE"), help="a reference recording for a new voice")
    ask.add_argument("--ping", action="store_true", default=None, help="a round trip through every worker's loop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
