"""From a stock T3 to a `Decoder` that is ready to speak: moved, sized to the memory there is, its graphs captured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch
from chatterbox.models.t3 import T3
from torch import nn

from pipeline.engines.base import Report
from pipeline.engines.chatterbox.attention import aligned_heads
from pipeline.engines.chatterbox.backbone import T3Net
from pipeline.engines.chatterbox.conditioning import Conditioning
from pipeline.engines.chatterbox.decode import LENGTH_STEP, Decoder, Kind, Sizes
from pipeline.engines.chatterbox.guards import LIMITS, Limits
from pipeline.engines.chatterbox.variants import Variant

CAPTURE_DEADLINE_S = 60.0
COMPILE_DEADLINE_S = 120.0
LOAD_DEADLINE_S = 120.0
CACHE_SHARE = 0.5
"""Of the free memory, for the KV cache at most."""

Convert = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Tuning:
    """``steps_per_check``: steps between two looks at whether speech has ended. ``text_tokens``: of the longest text.
    ``prefix_bytes``: bound of the conditioning prefixes kept. ``graphs`` None: on CUDA. ``ahead``: rounds queued before
    the first is waited for (None: one on CUDA, none elsewhere)."""

    steps_per_check: int = 4
    limits: Limits = LIMITS
    text_tokens: int = 512
    prefix_bytes: int = 256 * 2**20
    graphs: bool | None = None
    ahead: int | None = None


def build(
    variant: Variant,
    t3: T3,
    tuning: Tuning,
    *,
    device: torch.device,
    dtype: torch.dtype,
    streams: int,
    report: Report,
    convert: Convert | None = None,
) -> Decoder:
    """A decoder for that many streams, or as many as the memory holds (reported). Raises
    `torch.OutOfMemoryError` if that is not even one."""
    report("moving T3 to its device", LOAD_DEADLINE_S)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams, events and graphs are made on the current one
    conditioning = Conditioning(t3).to(device)
    sizes = _sizes(variant, t3, conditioning, tuning, streams)
    net = T3Net(t3, sizes.positions, device, dtype).eval()
    if convert is not None:
        net.backbone = convert(net.backbone)
    turbo = variant.turbo
    heads = () if turbo else aligned_heads(net.backbone.shape)
    kind = Kind(turbo, twice=not turbo, guided=not turbo, heads=heads, analyzed=variant.analyzer)
    graphs = device.type == "cuda" if tuning.graphs is None else tuning.graphs
    if (fitting := _fitting(sizes, net, kind, device)) < streams:
        report(f"{fitting} streams at most: there is not more memory free on {device}", LOAD_DEADLINE_S)
        sizes = replace(sizes, streams=fitting)
    while True:
        try:
            return _ready(Decoder(net, conditioning, kind, sizes, graphs, tuning.prefix_bytes), report)
        except torch.OutOfMemoryError:
            if sizes.streams == 1:
                raise
            sizes = replace(sizes, streams=sizes.streams // 2)
        # Out here, with the exception gone, nothing holds on to what was too large.
        torch.cuda.empty_cache()
        report(f"out of memory on {device}: {sizes.streams} streams at most", LOAD_DEADLINE_S)


def limits_of(variant: Variant, limits: Limits) -> Limits:
    """The stock Turbo does not count its first token."""
    return replace(limits, tokens=limits.tokens + 1) if variant.turbo else limits


def _sizes(variant: Variant, t3: T3, conditioning: Conditioning, tuning: Tuning, streams: int) -> Sizes:
    steps, text = tuning.steps_per_check, tuning.text_tokens
    speech = limits_of(variant, tuning.limits).tokens
    if not variant.turbo:
        text = min(text, t3.text_pos_emb.emb.num_embeddings)
        # A stream that has ended may step on for two rounds: those need positions as well.
        speech = min(speech, t3.speech_pos_emb.emb.num_embeddings - 2 * steps - 2)
    return Sizes(streams, conditioning.vectors(variant.prompt_tokens), text, speech, steps)


def _fitting(sizes: Sizes, net: T3Net, kind: Kind, device: torch.device) -> int:
    """How many streams' caches fit into a share of the free memory: the rest is for the audio half, and for work."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    shape, rows = net.backbone.shape, 2 if kind.guided else 1
    vectors = 2 * shape.layers * shape.heads * sizes.positions * rows
    each = vectors * shape.head_dim * net.speech_emb.weight.element_size()
    return max(1, min(sizes.streams, int(free * CACHE_SHARE / each)))


def _ready(decoder: Decoder, report: Report) -> Decoder:
    """Capture every graph; go on without them if that cannot be done. The largest works come first, so that memory
    that is too small shows at once."""
    if decoder.cpu_step is not None:
        report("compiling a step of T3 for this processor, which is kept", COMPILE_DEADLINE_S)
        decoder.capture(("forward", 1, LENGTH_STEP))
    works = sorted(decoder.works(), key=lambda work: (-work[1], -work[2]))
    if not decoder.graphs.active:
        works = [work for work in works if work[1] == works[0][1] and decoder.device.type == "cuda"]
    for number, work in enumerate(works, start=1):
        report(f"warming T3 up, {number} of {len(works)}", CAPTURE_DEADLINE_S)
        try:
            decoder.capture(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises again if the device itself is lost
            decoder.graphs.give_up()
            print(f"t3: no CUDA graphs, they could not be captured: {error}", file=sys.stderr, flush=True)
            break
    return decoder
