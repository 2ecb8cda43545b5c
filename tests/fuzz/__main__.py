"""Fuzz one target, or all in turn: ``python -m tests.fuzz [TARGET…] [--seconds 60]``.

A target is a module here with ``check(data)``, which raises for a defect, a DICTIONARY of what is worth trying and
MAX_BYTES. atheris guides the bytes by the coverage of our sources. With ``--keep`` the inputs that reach something new
go into the kept corpus. An input that fails is written to ``build/fuzz/``: put it into the corpus, and the tests fail
until it is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
FAILURES = FOLDER.parents[1] / "build" / "fuzz"
TARGETS = ("request", "cleaner", "segmenter", "growth", "config")
OURS = tuple(str(FOLDER.parents[1] / package) for package in ("ipc", "pipeline"))
HANG_S = 60
MEMORY_MB = 1024
INSTRUMENTED = ["ipc", "pipeline", "yaml"]


def kept(target: str) -> list[Path]:
    """The inputs that are kept for a target, in a fixed order."""
    return sorted((CORPUS / target).iterdir())


def load(target: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(f"tests.fuzz.{target}")


def main() -> int:
    """Fuzz the targets; the exit code is that of the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="try the same inputs again (default: others each time)")
    parser.add_argument("--keep", action="store_true", help="take inputs that reach something new into the corpus")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if wrong := [target for target in arguments.targets if target not in TARGETS]:
        parser.error(f"no such target: {', '.join(wrong)}; valid: {', '.join(TARGETS)}")
    if arguments.child:
        _become_fuzzer(arguments.targets[0], Path(arguments.child))
    for target in arguments.targets or TARGETS:
        if code := fuzz(target, arguments.seconds, arguments.keep, arguments.seed):
            return code
    return 0


def fuzz(target: str, seconds: int, keep: bool = False, seed: int = 0) -> int:
    """Fuzz a target in a process of its own; its exit code (0: nothing found)."""
    with tempfile.TemporaryDirectory() as scratch:
        # libFuzzer writes to the first corpus that it is given: a copy, unless what is new is to be kept.
        work = Path(scratch) / "work"
        work.mkdir()
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={scratch}/{target}-", f"-rss_limit_mb={MEMORY_MB}"]
        options += [f"-seed={seed}"] if seed else []
        code = _run(target, scratch, [*options, str(work), str(CORPUS / target)])
        if keep:
            for data in new(target, [path.read_bytes() for path in work.iterdir()]):
                (CORPUS / target / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        for found in Path(scratch).glob(f"{target}-*"):
            FAILURES.mkdir(parents=True, exist_ok=True)
            print(f"kept {shutil.copy(found, FAILURES)}")
        return code


def new(target: str, inputs: list[bytes]) -> list[bytes]:
    """Of the inputs, shortest first, those that go from one line of ours to another as none that is kept does."""
    check, seen, found = load(target).check, set[object](), list[bytes]()
    for data in [*(path.read_bytes() for path in kept(target)), *sorted(inputs, key=len)]:
        steps = set[object]()
        sys.settrace(partial(_trace, steps))
        try:
            check(data)
        finally:
            sys.settrace(None)
        if steps - seen:
            seen |= steps
            found.append(data)
    return [data for data in found if data in inputs]


def _trace(steps: set[object], frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
    if not frame.f_code.co_filename.startswith(OURS):
        return None
    before = frame.f_lineno

    def trace_line(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any]:
        nonlocal before
        steps.add((frame.f_code, before, frame.f_lineno))
        before = frame.f_lineno
        return trace_line

    return trace_line


def _run(target: str, scratch: str, options: list[str]) -> int:
    module = load(target)
    words = Path(scratch) / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in module.DICTIONARY))
    common = [f"-dict={words}", f"-max_len={module.MAX_BYTES}", f"-timeout={HANG_S}", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz", target, "--child", scratch]
    (Path(scratch) / "options").write_text("\n".join([*common, *options]))
    return subprocess.run(command, check=False).returncode


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8"))


def _become_fuzzer(target: str, scratch: Path) -> None:
    """Hand this process to libFuzzer, which leaves it by itself."""
    try:
        import atheris
    except ImportError:
        sys.exit("fuzzing needs atheris, which has packages for Linux on x86-64: pip install -e '.[dev]'")
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        module = load(target)
    atheris.Setup([target, *(scratch / "options").read_text().splitlines()], module.check)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
