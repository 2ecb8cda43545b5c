"""What Chatterbox costs elsewhere, on the same weights: the stock package, and the way `chatterbox-streaming` takes.

Stock: all tokens, then all sound. chatterbox-streaming: the stock loop of T3 gives 25 tokens, S3Gen renders the last
50 tokens before them and these anew with the reference, what belongs to the 50 is cut off, and the rest fades in over
20 ms; there is no lookahead and nothing of an earlier chunk's sound is seen (context 50, chunk 25). The loop of T3 is
the same in both, so it runs once and notes when each token was there. Without watermark, as ours is measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.t3.modules.cond_enc import T3Cond

from ipc.messages import SAMPLE_RATE
from pipeline.engines.chatterbox.conditionals import Conditionals
from pipeline.engines.chatterbox.rehearsal import kept, quiet, windows
from pipeline.engines.chatterbox.variants import START_TEXT, STOP_TEXT, Variant

CONTEXT_TOKENS, CHUNK_TOKENS = 50, 25

Samples = npt.NDArray[np.float32]

_clock = time.perf_counter


def use_cpu_clock() -> None:
    """From now on count the processor time of this process: with one thread that is what the clock says on a machine
    that has nothing else to do."""
    global _clock  # one clock for all that is measured in this process
    _clock = time.process_time


def now_s() -> float:
    """The time by which everything here is measured."""
    return _clock()


@dataclass(frozen=True)
class Spoken:
    """``tokens`` of one run of the stock loop; token i was there ``at_s[i]`` seconds after the call."""

    tokens: torch.Tensor
    at_s: list[float]

    @property
    def per_s(self) -> float:
        """Steps a second, without the prefill."""
        return (len(self.at_s) - 1) / (self.at_s[-1] - self.at_s[0])


def speak(variant: Variant, t3: T3, voice: Conditionals, text: Sequence[int], steps: int) -> Spoken:
    """``steps`` tokens by the stock loop, with the settings that a request has which sets nothing."""
    asked = variant.defaults
    heard = T3Cond(
        speaker_emb=voice.t3.speaker,
        cond_prompt_speech_tokens=voice.t3.prompt_tokens,
        emotion_adv=None if variant.turbo else asked.exaggeration * torch.ones(1, 1, 1),
    ).to(device=str(t3.device))
    moments: list[float] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if inputs[0].numel() == 1:
            moments.append(now_s())

    handle = t3.speech_emb.register_forward_hook(note)
    try:
        with quiet():
            began_s = now_s()
            made = _inference(variant, t3, heard, text, steps)
            _wait(t3.device)
            ended_s = now_s()
    finally:
        handle.remove()
    moments = moments[1:]  # the first is the start of speech
    while len(moments) < steps:
        moments.append(ended_s)
    return Spoken(made[0, :steps], [moment - began_s for moment in moments[:steps]])


def _inference(variant: Variant, t3: T3, heard: T3Cond, text: Sequence[int], steps: int) -> torch.Tensor:
    asked = variant.defaults
    if variant.turbo:
        ids = torch.tensor([list(text)], device=t3.device)
        return t3.inference_turbo(
            heard,
            ids,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            repetition_penalty=asked.repetition_penalty,
            max_gen_len=steps - 1,
        )
    ids = torch.tensor([[START_TEXT, *text, STOP_TEXT]] * 2, device=t3.device)
    return t3.inference(
        t3_cond=heard,
        text_tokens=ids,
        max_new_tokens=steps,
        temperature=asked.temperature,
        top_p=asked.top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        cfg_weight=asked.cfg_weight,
    )


def sound(variant: Variant, s3gen: S3Gen, voice: Conditionals, tokens: torch.Tensor) -> Samples:
    """Samples of all tokens in one go."""
    own = voice.s3gen
    reference = {
        "prompt_token": own.prompt_tokens.clone(),
        "prompt_token_len": torch.tensor([own.prompt_tokens.shape[1]]),
        "prompt_feat": own.prompt_mel.clone(),
        "prompt_feat_len": None,
        "embedding": own.speaker.clone(),
    }
    device = next(s3gen.flow.parameters()).device
    # The package's own notion of where it is looks at the speech tokenizer, which is not built here.
    with quiet(), _placed(s3gen, device):
        made, _ = s3gen.inference(
            speech_tokens=tokens.reshape(1, -1).to(device),
            ref_dict={name: None if one is None else one.to(device) for name, one in reference.items()},
            n_cfm_timesteps=variant.cfm_steps,
        )
    samples: Samples = made.reshape(-1).float().cpu().numpy()
    return samples


@contextlib.contextmanager
def _placed(s3gen: S3Gen, device: torch.device) -> Iterator[None]:
    """A module of the package without its speech tokenizer, which tells it the device."""
    if hasattr(s3gen, "tokenizer"):
        yield
        return
    s3gen.tokenizer = torch.nn.Linear(1, 1, device=device)
    try:
        yield
    finally:
        del s3gen.tokenizer


@dataclass(frozen=True)
class Packet:
    """One piece of sound: when it was there, counted from the request, and how long it lasts."""

    at_s: float
    samples: int

    @property
    def speech_s(self) -> float:
        return self.samples / SAMPLE_RATE


Render = Callable[[torch.Tensor], Samples]


def one_shot(spoken: Spoken, render: Render) -> list[Packet]:
    """All tokens, then all sound."""
    began_s = now_s()
    samples = render(spoken.tokens)
    return [Packet(spoken.at_s[-1] + now_s() - began_s, len(samples))]


def streaming(spoken: Spoken, render: Render) -> list[Packet]:
    """The other one's chunks. T3 and S3Gen take turns there: each chunk's sound delays the next one's tokens."""
    packets, rendering_s = [], 0.0
    for first, done, last in windows(len(spoken.at_s), CHUNK_TOKENS, CONTEXT_TOKENS):
        began_s = now_s()
        new = kept(render(spoken.tokens[first:last]), done - first, last - first)
        rendering_s += now_s() - began_s
        packets.append(Packet(spoken.at_s[last - 1] + rendering_s, len(new)))
    return packets


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
