"""In which numbers each half computes, and what that costs in quality against float32.

``auto`` takes float32 on a CPU and Apple's GPUs; on CUDA bfloat16 for T3 (its range is float32's) and float16 for
S3Gen's estimator (its mantissa is finer, and the encoder, F0 and HiFT stay float32 in any case). ``int8`` is for
T3's matrices on a CPU. What a device cannot do, and what changes the result by more than
`MOST_DEGRADATION`, is not used: the next better kind is, and a line in the log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from torch import nn

from pipeline.engines.base import Report
from pipeline.engines.chatterbox.backbone import Cache, Pass, T3Net
from pipeline.engines.chatterbox.flow import Flow, FlowJob
from pipeline.engines.chatterbox.int8 import quantised
from pipeline.engines.chatterbox.variants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, SPEECH_TOKENS

MOST_DEGRADATION = 0.05
CHECK_DEADLINE_S = 300.0
LARGE = 100_000_000
"""Weights of a backbone: its steps on a CPU wait for memory."""
TEXT_TOKENS, SPEECH_TOKENS_FORCED = 24, 96
PROMPT_TOKENS, STREAM_TOKENS = 50, 25

Convert = Callable[[nn.Module], nn.Module]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BETTER = {"int8": "float32", "float16": "bfloat16", "bfloat16": "float32"}


@dataclass(frozen=True)
class Chosen:
    """``convert``: what quantises T3's backbone. ``note``: one line for the log."""

    name: str
    dtype: torch.dtype
    convert: Convert | None
    note: str


@dataclass(frozen=True)
class T3Quality:
    """On the same history as float32. ``agreement``: how often the likeliest token is the same. ``kept``: the share of
    the likeliest token's probability that the chosen one has (1 where two are as likely). ``kl``: divergence, nats."""

    agreement: float
    kept: float
    kl: float

    @property
    def degradation(self) -> float:
        """What counts against `MOST_DEGRADATION`."""
        return max(1.0 - self.kept, self.kl)


@dataclass(frozen=True)
class S3GenQuality:
    """``distance``: root mean square of the difference of mel frames from the same tokens and noise (log scale), and
    ``relative``, that as a share of how much the frames vary themselves."""

    distance: float
    relative: float

    @property
    def degradation(self) -> float:
        """What counts against `MOST_DEGRADATION`."""
        return self.relative


def for_t3(asked: str, device: str, t3: T3, report: Report) -> Chosen:
    """What T3 computes in."""
    wanted = _auto(device, "bfloat16") if asked == "auto" else asked
    chosen = _settled(wanted, device, lambda name: _t3_degradation(name, device, t3, report))
    if asked == "auto" and device == "cpu" and sum(one.numel() for one in t3.tfmr.parameters()) >= LARGE:
        return replace(chosen, note=f"{chosen.note}; with model.precision int8 its steps take about half the time")
    return chosen


def for_s3gen(asked: str, device: str, s3gen: S3Gen, report: Report) -> Chosen:
    """What S3Gen's estimator computes in; int8 is T3's alone."""
    wanted = _auto(device, "float16") if asked == "auto" else "float32" if asked == "int8" else asked
    return _settled(wanted, device, lambda name: _s3gen_degradation(name, device, s3gen, report))


def _auto(device: str, on_cuda: str) -> str:
    if not device.startswith("cuda"):
        return "float32"
    return on_cuda if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"


def _settled(wanted: str, device: str, degradation: Callable[[str], float]) -> Chosen:
    """The kind that is asked for, or the next better one that works and is good enough."""
    name, reasons = wanted, []
    while name != "float32":
        if fault := unsupported(name, device):
            reasons.append(f"{name} cannot be used on {device} ({fault})")
        else:
            worse = degradation(name)
            if worse <= MOST_DEGRADATION:
                break
            reasons.append(f"{name} changes the result by {worse:.0%}, more than {MOST_DEGRADATION:.0%}")
        name = BETTER[name]
    why = f", as {'; '.join(reasons)}" if reasons else ""
    return Chosen(name, dtype_of(name), convert_of(name), f"computes in {name}{why}")


def dtype_of(name: str) -> torch.dtype:
    """The type of what is not quantised."""
    return DTYPES.get(name, torch.float32)


def convert_of(name: str) -> Convert | None:
    """What makes an int8 backbone of a float32 one."""
    return quantised if name == "int8" else None


def unsupported(name: str, device: str) -> str:
    """Why a kind of number cannot be computed with there (empty: it can)."""
    if name == "int8" and device != "cpu":
        return "int8 is for the CPU"
    try:
        layer: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU()).to(device, dtype_of(name))
        if (convert := convert_of(name)) is not None:
            layer = convert(layer)
        with torch.inference_mode():
            x = layer(torch.ones(1, 4, 64, device=device, dtype=dtype_of(name)))
            made = nn.functional.scaled_dot_product_attention(x, x, x)
            return "" if bool(torch.isfinite(made).all()) else "it makes numbers that are none"
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return str(error).splitlines()[0]


def _t3_degradation(name: str, device: str, t3: T3, report: Report) -> float:
    report(f"comparing T3 in {name} with float32", CHECK_DEADLINE_S)
    return t3_quality(t3, name, device).degradation


def t3_quality(t3: T3, name: str, device: str, forced: int = SPEECH_TOKENS_FORCED) -> T3Quality:
    """T3 in that precision against float32 on the same device, over ``forced`` tokens of a fixed history."""
    sure = t3_logits(t3, "float32", device, forced)
    other = t3_logits(t3, name, device, forced)
    if not torch.isfinite(other).all():
        return T3Quality(0.0, 0.0, float("inf"))
    probable, chosen = sure.softmax(dim=-1), other.argmax(dim=-1, keepdim=True)
    best = probable.max(dim=-1, keepdim=True)
    kl = (probable * (sure.log_softmax(dim=-1) - other.log_softmax(dim=-1))).sum(dim=-1)
    return T3Quality(
        agreement=float((best.indices == chosen).float().mean()),
        kept=float((probable.gather(-1, chosen) / best.values).mean()),
        kl=float(kl.mean()),
    )


@torch.inference_mode()
def t3_logits(t3: T3, name: str, device: str, forced: int) -> torch.Tensor:
    """(forced, vocabulary) float32 on the CPU: what the model expects after each token of a fixed history."""
    where = torch.device(device)
    length = TEXT_TOKENS + forced
    net = T3Net(t3, length + 1, where, dtype_of(name)).eval()
    if (convert := convert_of(name)) is not None:
        net.backbone = convert(net.backbone)
    text, speech = (ids.to(where) for ids in _history(t3, forced))
    x = torch.cat([net.text(text, conditional=True), net.speech(speech, torch.arange(forced, device=where))])[None]
    cache = Cache(net.backbone.shape, 1, length + 1, where, dtype_of(name))
    run = Pass(cache, torch.arange(length, device=where)[None], length)
    made = net.head(net.backbone(x, run))[0, TEXT_TOKENS:]
    return made.float().cpu()


def _history(t3: T3, forced: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    text = torch.randint(0, t3.text_emb.num_embeddings, (TEXT_TOKENS,), generator=random)
    return text, torch.randint(0, SPEECH_TOKENS, (forced,), generator=random)


def _s3gen_degradation(name: str, device: str, s3gen: S3Gen, report: Report) -> float:
    report(f"comparing S3Gen in {name} with float32", CHECK_DEADLINE_S)
    return s3gen_quality(s3gen, name, device).degradation


def s3gen_quality(s3gen: S3Gen, name: str, device: str, tokens: int = STREAM_TOKENS) -> S3GenQuality:
    """S3Gen's mel frames in that precision against float32 on the same device, for ``tokens`` new tokens."""
    sure, other = (s3gen_frames(s3gen, kind, device, tokens) for kind in ("float32", name))
    if not torch.isfinite(other).all():
        return S3GenQuality(float("inf"), float("inf"))
    distance = float((other - sure).square().mean().sqrt())
    return S3GenQuality(distance, distance / max(1e-6, float(sure.std())))


@torch.inference_mode()
def s3gen_frames(s3gen: S3Gen, name: str, device: str, tokens: int) -> torch.Tensor:
    """(80, frames) float32 on the CPU."""
    only_flow = _Only(deepcopy(s3gen.flow))
    flow = Flow(only_flow, torch.device(device), dtype_of(name))
    random = np.random.default_rng(0)
    length = PROMPT_TOKENS + tokens + LOOKAHEAD_TOKENS
    prompt = torch.from_numpy(random.standard_normal((80, FRAMES_PER_TOKEN * PROMPT_TOKENS)).astype(np.float32))
    job = FlowJob(
        tokens=random.integers(0, SPEECH_TOKENS, length),
        lookahead=LOOKAHEAD_TOKENS,
        given=((prompt - 5.0).to(device),),
        prompt_frames=FRAMES_PER_TOKEN * PROMPT_TOKENS,
        first_frame=0,
        speaker=flow.speaker(torch.from_numpy(random.standard_normal((1, 192)).astype(np.float32))),
        noise_words=(1, 2),
        steps=2 if flow.meanflow else 10,
    )
    return flow.mels([job])[0][:, FRAMES_PER_TOKEN * PROMPT_TOKENS :].float().cpu()


@dataclass
class _Only:
    """Of an S3Gen what `Flow` takes over."""

    flow: nn.Module
