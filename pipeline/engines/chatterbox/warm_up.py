"""Before the first stream: every shape that streams will have runs once, and on CUDA becomes a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.engines.base import Report
from pipeline.engines.chatterbox.flow import MEL_CHANNELS, Flow, FlowJob
from pipeline.engines.chatterbox.hift import BEFORE_FRAMES, Hift, HiftJob
from pipeline.engines.chatterbox.sounding import Rules
from pipeline.engines.chatterbox.together import Memory, is_memory
from pipeline.engines.chatterbox.variants import FRAMES_PER_TOKEN, LOOKAHEAD_TOKENS, TOKENS_PER_S

_SHORTEST_PROMPT_S = 1.0


def flow_lengths(rules: Rules, longest_prompt_s: float, rungs: Sequence[int], bucket: int) -> list[int]:
    """Sequence lengths in tokens (reference, context, rung, lookahead), one in each bucket that streams will use; none
    without rungs: then nothing is captured."""
    if not rungs:
        return []
    context = rules.continuity.context_tokens if rules.continuity.windowed else 0
    least = round(_SHORTEST_PROMPT_S * TOKENS_PER_S) + min(rungs) + LOOKAHEAD_TOKENS
    most = round(longest_prompt_s * TOKENS_PER_S) + context + max(rungs) + LOOKAHEAD_TOKENS
    return list(range(-(-least // bucket) * bucket, most + bucket, bucket))


def hift_lengths(rules: Rules, rungs: Sequence[int], bucket: int) -> list[int]:
    """Window lengths in frames, one in each bucket; none without rungs."""
    if not rungs:
        return []
    most = BEFORE_FRAMES + rules.held_frames + FRAMES_PER_TOKEN * max(rungs)
    return list(range(bucket, most + bucket, bucket))


def rows(most: int) -> list[int]:
    """1, 2, 4, … and ``most``, the largest first: the others then fit into its memory."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)}, reverse=True)


@torch.inference_mode()
def warm_up(
    flow: Flow,
    hift: Hift,
    memory: Memory,
    rules: Rules,
    steps: int,
    longest_prompt_s: float,
    rungs: Sequence[int],
    report: Report,
) -> None:
    """Capture all graphs (on CUDA only). Rows that do not fit into memory are given up for good."""
    replays = (flow.encoder, flow.step, hift.window)
    for replay in replays:
        replay.recording = True
    while True:
        try:
            for count in rows(memory.rows):
                for length in flow_lengths(rules, longest_prompt_s, rungs, flow.bucket_tokens):
                    report(f"capturing S3Gen for {count} streams of {length} tokens", 120.0)
                    flow.mels([_flow_job(flow, length, steps)] * count)
                for length in hift_lengths(rules, rungs, hift.bucket_frames):
                    report(f"capturing HiFT for {count} streams of {length} frames", 120.0)
                    hift.sounds([_hift_job(hift, length)] * count)
            break
        except RuntimeError as error:
            if not is_memory(error):
                raise
            memory.halve(memory.rows)
    for replay in replays:
        replay.recording = False


def _flow_job(flow: Flow, length: int, steps: int) -> FlowJob:
    return FlowJob(
        tokens=np.zeros(length, np.int64),
        lookahead=LOOKAHEAD_TOKENS,
        given=(),
        prompt_frames=0,
        first_frame=0,
        speaker=torch.zeros(MEL_CHANNELS, device=flow.device),
        noise_words=(0, 0),
        steps=steps,
    )


def _hift_job(hift: Hift, length: int) -> HiftJob:
    mel = torch.zeros(MEL_CHANNELS, length, device=hift.device)
    return HiftJob(mel, 0, 0, 0, 0.0, 0, final=False)
