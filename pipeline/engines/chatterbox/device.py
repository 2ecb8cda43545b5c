"""Where a half computes: ``auto``, or what pipeline.yaml names, checked. torch only inside the functions."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass

from pipeline.engines.base import EngineError

PROBE_TIMEOUT_S = 60.0
NEWER_TORCH = (
    "install a torch made for it (pip install --upgrade torch torchaudio) and then "
    "`pip install --no-deps chatterbox-tts`; see README, Chatterbox"
)
_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": [], "mps": bool(torch.backends.mps.is_available())}
for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    try:
        (torch.zeros(8, device=f"cuda:{index}") + 1).sum().item()
        fault = ""
    except RuntimeError as error:
        fault = str(error).splitlines()[0]
    found["cuda"].append([torch.cuda.get_device_name(index), fault])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Found:
    """What torch can use on this machine. ``cuda``: (name, what is wrong with it) of each GPU."""

    torch: str
    cuda: tuple[tuple[str, str], ...]
    mps: bool


@functools.lru_cache(maxsize=1)
def probe() -> Found:
    """Ask torch in a process of its own, as the supervisor imports none.

    Raises `EngineError` where torch does not load.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"torch could not be asked for its devices: {error}") from error
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        raise EngineError(f"torch cannot be loaded: {said}")
    found = json.loads(asked.stdout.strip().splitlines()[-1])
    return Found(found["torch"], tuple((name, fault) for name, fault in found["cuda"]), found["mps"])


def why_not(device: str) -> str:
    """What is in the way of computing on ``device`` (empty: nothing). ``auto`` and ``cpu`` always work."""
    if device in ("auto", "cpu"):
        return ""
    found = probe()
    if device == "mps":
        return "" if found.mps else f"device mps: torch {found.torch} sees no Apple GPU here; use cpu or auto"
    index = int(device.partition(":")[2] or 0)
    if index >= len(found.cuda):
        seen = ", ".join(f"cuda:{number} ({name})" for number, (name, _) in enumerate(found.cuda)) or "none"
        return f"device {device}: torch {found.torch} sees no such GPU; it sees {seen}; use cpu or auto"
    name, fault = found.cuda[index]
    return f"device {device}: torch {found.torch} cannot compute on {name} ({fault}); {NEWER_TORCH}" if fault else ""


def why_no_gpu() -> str:
    """Why ``auto`` would end on the CPU (empty: it would not)."""
    found = probe()
    if found.mps or any(not fault for _, fault in found.cuda):
        return ""
    if found.cuda:
        return why_not("cuda:0")
    return f"torch {found.torch} sees no GPU"


def resolve_device(asked: str) -> str:
    """The torch device to compute on, in the process that computes: cuda:N, mps or cpu.

    Raises `EngineError` when a named one cannot be used.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        if cuda and not _fault("cuda:0"):
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    device = "cuda:0" if asked == "cuda" else asked
    if device.startswith("cuda:") and int(device[5:]) >= cuda:
        seen = f"GPUs 0 to {cuda - 1}" if cuda else "no GPU"
        raise EngineError(f"device {device}: torch {torch.__version__} sees {seen}; use cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise EngineError(f"device mps: torch {torch.__version__} sees no Apple GPU here; use cpu or auto")
    if fault := _fault(device):
        raise EngineError(f"device {device}: torch {torch.__version__} cannot compute on it ({fault}); {NEWER_TORCH}")
    return device


def _fault(device: str) -> str:
    """What goes wrong when something small is computed there (empty: nothing)."""
    import torch

    try:
        (torch.zeros(8, device=device) + 1).sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
