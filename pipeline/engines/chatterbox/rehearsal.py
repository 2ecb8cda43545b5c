"""A small S3Gen with random weights that reacts to what it is fed, and everything to render with it and measure.

The stock classes' random weights hardly listen: their sound is the same hum whatever the tokens. Here each layer of
the vocoder is scaled to pass on what it gets (one forward pass, nothing is trained), its last layer favours low
frequencies, the pitch moves around 150 Hz, and the flow's estimator outweighs the noise that it starts from. What
comes out is no speech, but it hums on a moving pitch and changes with the tokens, so that a seam has something to be
a seam in.
"""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from chatterbox.models.s3gen import S3Gen

from pipeline.engines.base import AudioStep, Samples, Segment
from pipeline.engines.chatterbox.audio import ChatterboxAudio
from pipeline.engines.chatterbox.conditionals import Conditionals, S3GenConditionals, T3Conditionals
from pipeline.engines.chatterbox.hift import fold_weight_norm
from pipeline.engines.chatterbox.modules import S3GenSizes, build_s3gen
from pipeline.engines.chatterbox.tiny import tiny_s3gen_sizes
from pipeline.engines.chatterbox.variants import SAMPLES_PER_FRAME, SAMPLES_PER_TOKEN, Variant

Speech = npt.NDArray[np.uint16]

_PITCH_HZ, _PITCH_SPREAD_HZ = 150.0, 4.0
_SLOPE = 3.0
_SPEECH_GAIN = 6.0

STOCK = "stock, one shot"


def reacting_s3gen(variant: Variant, seed: int = 0, *, full_size: bool = False) -> S3Gen:
    """Such a model, small or of the published size; the same seed gives the same weights."""
    sizes = S3GenSizes(meanflow=variant.meanflow) if full_size else tiny_s3gen_sizes(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        s3gen = build_s3gen(sizes)
    generator = torch.Generator().manual_seed(seed)
    net = fold_weight_norm(s3gen.mel2wav)
    with torch.no_grad():
        s3gen.flow.decoder.estimator.final_proj.weight *= _SLOPE
        s3gen.flow.encoder_proj.weight *= _SPEECH_GAIN
        mel = torch.nn.functional.interpolate(torch.randn(1, 80, 30, generator=generator), 90, mode="linear")
        mel = _SLOPE * (mel + 0.3 * torch.randn(mel.shape, generator=generator))
        pitch = net.f0_predictor.condnet(mel).transpose(1, 2) @ net.f0_predictor.classifier.weight[0]
        gain = _PITCH_SPREAD_HZ / pitch.std()
        net.f0_predictor.classifier.weight *= gain
        net.f0_predictor.classifier.bias.fill_(float(_PITCH_HZ - gain * pitch.mean()))
        source, _, _ = net.m_source(net.f0_upsamp(net.f0_predictor(mel)[:, None]).transpose(1, 2))
        _pass_on(net, lambda: net.decode(x=mel, s=source.transpose(1, 2)))
    return s3gen


def _pass_on(net: torch.nn.Module, run: Callable[[], Any]) -> None:
    """Scale each convolution so that its output has mean 0 and a deviation near 1, in the
    order in which ``run`` comes by; the last one tilts the spectrum."""
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d) and not name.startswith("f0_predictor"):
            aim = 0.3 if ".convs2." in name else 3.0 if name.startswith("source_downs") else 0.7
            hooks.append(module.register_forward_hook(_scaler(aim, last=name == "conv_post")))
    run()
    for hook in hooks:
        hook.remove()


def _scaler(aim: float, *, last: bool) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
    def scale(module: Any, _: Any, out: torch.Tensor) -> torch.Tensor:
        mean, factor = out.mean(dim=(0, 2)), aim / out.std()
        module.weight.mul_(factor)
        shift = _tilt(len(mean)) if last else torch.zeros_like(mean)
        module.bias.copy_((module.bias - mean) * factor + shift)
        return (out - mean[:, None]) * factor + shift[:, None]

    return scale


def _tilt(channels: int) -> torch.Tensor:
    """Of the last layer: logarithms of loudness that fall with frequency, then phases."""
    bins = channels // 2
    return torch.cat([-2.0 - 1.5 * torch.arange(bins), torch.zeros(channels - bins)])


# --------------------------------------------------------------------------- what is said, and by whom


def babble(tokens: int, seed: int = 0) -> Speech:
    """Tokens that stay for a while, as those of speech do."""
    draw = np.random.default_rng(seed)
    runs = [np.full(draw.integers(2, 7), draw.integers(0, 6561)) for _ in range(tokens)]
    return np.concatenate(runs)[:tokens].astype("<u2")


def hum(seconds: float) -> torch.Tensor:
    """A voice-like reference: harmonics of a moving pitch, float32 at 24 kHz."""
    t = torch.arange(round(24000 * seconds)) / 24000
    phase = 140 * t + 10 * torch.sin(3 * t)
    return sum((0.1 / k * torch.sin(2 * math.pi * k * phase) for k in range(1, 8)), torch.zeros_like(t))


class OneVoice:
    """A book of voices with one in it: the hum as the stock package takes it."""

    def __init__(self, s3gen: S3Gen, seconds: float) -> None:
        with torch.inference_mode():
            made = s3gen.embed_ref(hum(seconds), 24000)
        self.stock = {name: one.clone() if torch.is_tensor(one) else one for name, one in made.items()}
        voice = S3GenConditionals(self.stock["prompt_token"], self.stock["prompt_feat"], self.stock["embedding"])
        self._voice = Conditionals(T3Conditionals(torch.zeros(1, 256), torch.zeros(1, 0).long()), voice)

    def conditionals(self, voice: str) -> Conditionals:
        return self._voice


# --------------------------------------------------------------------------- renderings


@dataclass
class Rendering:
    """Sound, and how it was made. ``joins``: samples where one chunk's sound goes over into the next one's;
    ``mel_joins``: samples where the next chunk's mel frames begin. ``wall_s`` and ``cpu_s``: of each chunk;
    ``first_samples``: of the first that sounded; ``checkpoint_bytes``: the largest."""

    method: str
    samples: Samples
    joins: list[int] = field(default_factory=list)
    mel_joins: list[int] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    first_s: float = 0.0
    first_samples: int = 0
    checkpoint_bytes: int = 0


class Rehearsal:
    """One model, one voice, one list of tokens; every method gets the same."""

    def __init__(
        self, variant: Variant, tokens: int, *, full_size: bool = False, reference_s: float = 4.0, seed: int = 0
    ) -> None:
        torch.backends.mkldnn.enabled = False  # for all methods alike; see `ChatterboxAudio`
        self.variant = variant
        self._s3gen = reacting_s3gen(variant, seed, full_size=full_size)
        self._voice = OneVoice(self._s3gen, reference_s)
        self._s3gen.speaker_encoder = None
        self._s3gen.tokenizer = torch.nn.Linear(1, 1)  # large; the package asks it for its device
        self.tokens = babble(tokens, seed)
        self._seed = seed

    def audio(self, method: str = "context", **options: Any) -> ChatterboxAudio:
        """An audio half on a copy of the model."""
        given: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "max_batch": 8, "report": lambda *_: None}
        return ChatterboxAudio(
            self.variant, deepcopy(self._s3gen), self._voice, **given | {"continuity": method} | options
        )

    def ours(self, method: str, rungs: Sequence[int], **options: Any) -> Rendering:
        """By one of `continuity.METHODS`, on the ladder that ``rungs`` makes (the last one repeats)."""
        audio, made = self.audio(method, **options), Rendering(method, np.zeros(0, np.float32))
        audio.open(1, Segment("", "end", "hum", "en", 1.0, self._seed, {}))
        audio.feed(1, len(self.tokens), self.tokens.tobytes(), True)
        parts: list[Samples] = []
        for cut in ladder(len(self.tokens), rungs):
            with _timed(made):
                step = _only(audio, 1, cut)
            parts.append(step.samples)
            made.checkpoint_bytes = max(made.checkpoint_bytes, len(step.checkpoint))
            made.mel_joins.append(cut * SAMPLES_PER_TOKEN)
        return _finished(made, parts)

    def one_shot(self) -> Rendering:
        """All at once: what the streams are compared with."""
        return self.ours("context", [len(self.tokens)])

    def stock(self) -> Rendering:
        """All at once by the package itself, with noise of its own."""
        return self._stock(STOCK, [(0, 0, len(self.tokens))])

    def chatterbox_streaming(self, chunk: int = 25, context: int = 50) -> Rendering:
        """As that fork does: the package on `windows`, of which it keeps what `kept` keeps."""
        return self._stock("chatterbox-streaming", windows(len(self.tokens), chunk, context))

    def _stock(self, method: str, pieces: Iterable[tuple[int, int, int]]) -> Rendering:
        s3gen, made, parts = deepcopy(self._s3gen), Rendering(method, np.zeros(0, np.float32)), []
        for first, done, cut in pieces:
            own = torch.from_numpy(self.tokens[first:cut].astype(np.int64))[None]
            voice = {name: one.clone() if torch.is_tensor(one) else one for name, one in self._voice.stock.items()}
            with _timed(made), torch.random.fork_rng(devices=[]), quiet():
                torch.manual_seed(cut)
                sound, _ = s3gen.inference(own, ref_dict=voice, n_cfm_timesteps=self.variant.cfm_steps)
            whole = sound[0].numpy().copy()
            parts.append(whole if method == STOCK else kept(whole, done - first, cut - first))
            made.mel_joins.append(cut * SAMPLES_PER_TOKEN)
        return _finished(made, parts)

    def long(self, chunks: int, chunk: int, times: int = 15) -> tuple[list[float], list[float], int]:
        """CPU seconds of the fifth and of the last chunk of a stream of ``chunks`` by the default method, each
        ``times`` times, in turns, so that a busy machine slows both alike; and the checkpoint's size in bytes.

        The stream goes on from checkpoints: that makes the same chunk again.
        """
        audio, speech = self.audio(), babble((chunks + 1) * chunk, self._seed)
        asked = Segment("", "end", "hum", "en", 1.0, self._seed, {})
        before = {0: b""}
        audio.open(1, asked)
        audio.feed(1, len(speech), speech.tobytes(), False)
        for number in range(1, chunks):
            step = _only(audio, 1, number * chunk)
            if number in (4, chunks - 1):
                before[number] = step.checkpoint
        early, late = (Rendering(name, np.zeros(0, np.float32)) for name in ("fifth", "last"))
        for _ in range(times):
            for number, made in ((min(4, chunks - 1), early), (chunks - 1, late)):
                audio.open(2, asked, before[number])
                audio.feed(2, len(speech), speech.tobytes(), False)
                with _timed(made):
                    _only(audio, 2, (number + 1) * chunk)
                audio.close_stream(2)
        return early.cpu_s, late.cpu_s, len(before[chunks - 1])


def _only(audio: ChatterboxAudio, stream: int, upto: int) -> AudioStep:
    (step,) = audio.render([(stream, upto)])
    assert isinstance(step, AudioStep), step
    return step


def windows(tokens: int, chunk: int, context: int) -> Iterator[tuple[int, int, int]]:
    """What chatterbox-streaming renders for each chunk: tokens from the first of ``context``, from the first new one,
    up to the last."""
    for done in range(0, tokens, chunk):
        yield max(0, done - context), done, min(done + chunk, tokens)


def kept(sound: Samples, context: int, tokens: int) -> Samples:
    """What it keeps of the sound of so many tokens, the first of them context: the rest, with 20 ms of fade."""
    part: Samples = sound[round(len(sound) * context / tokens) :].copy()
    fade = np.linspace(0, 1, SAMPLES_PER_FRAME, dtype=np.float32)
    part[: len(fade)] *= fade[: len(part)]
    return part


def ladder(tokens: int, rungs: Sequence[int]) -> list[int]:
    """Cuts up to the end; the last rung repeats."""
    cuts = itertools.accumulate(itertools.chain(rungs, itertools.repeat(rungs[-1])))
    return [*itertools.takewhile(lambda cut: cut < tokens, cuts), tokens]


@contextmanager
def _timed(made: Rendering) -> Iterator[None]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    yield
    made.wall_s.append(time.perf_counter() - wall_s)
    made.cpu_s.append(time.process_time() - cpu_s)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the package's prints and progress bars."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _finished(made: Rendering, parts: Sequence[Samples]) -> Rendering:
    lengths = [len(part) for part in parts]
    first = next(index for index, length in enumerate(lengths) if length)
    made.first_s, made.first_samples = sum(made.cpu_s[: first + 1]), lengths[first]
    made.samples = np.concatenate(parts)
    made.joins = sorted({join for join in itertools.accumulate(lengths[:-1]) if join})
    made.mel_joins = made.mel_joins[:-1]
    return made
