"""Tokens to mel frames: as the stock package makes them, and the same in whatever company."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("chatterbox")

import numpy as np
import torch

from pipeline.engines.chatterbox.flow import Flow, FlowJob
from pipeline.engines.chatterbox.position_noise import seed_words
from pipeline.engines.chatterbox.variants import CHATTERBOX, TURBO, Variant
from tests.pipeline.engines.chatterbox.s3gen_tools import SEED, our_noise, small, speech, stock_voice, voice_of

pytestmark = pytest.mark.chatterbox

CPU = torch.device("cpu")
VARIANTS = pytest.mark.parametrize("variant", [CHATTERBOX, TURBO], ids=lambda variant: variant.name)


def flow_of(variant: Variant, bucket: int = 1, dtype: torch.dtype = torch.float32) -> Flow:
    return Flow(small(variant), CPU, dtype, bucket)


def job_of(flow: Flow, variant: Variant, tokens: int, lookahead: int = 0, seed: int = SEED, **other: Any) -> FlowJob:
    voice = voice_of(variant)
    prompt = voice.prompt_tokens[0].numpy()
    return FlowJob(
        tokens=np.concatenate([prompt, speech(tokens, seed).astype(np.int64)]),
        lookahead=lookahead,
        given=(voice.prompt_mel[0].t(),),
        prompt_frames=2 * len(prompt),
        first_frame=0,
        speaker=flow.speaker(voice.speaker),
        noise_words=seed_words(seed),
        steps=variant.cfm_steps,
        **other,
    )


def stock_mel(variant: Variant, flow: Flow, job: FlowJob) -> torch.Tensor:
    """What the stock classes make of the job's own tokens with the same noise."""
    s3gen = small(variant)
    own = torch.from_numpy(job.tokens[job.prompt_frames // 2 :])[None]
    with torch.inference_mode(), our_noise(s3gen, flow.noise([job], job.frames)):
        return s3gen(
            own,
            ref_wav=None,
            ref_sr=None,
            ref_dict=stock_voice(variant),
            finalize=True,
            skip_vocoder=True,
            n_cfm_timesteps=variant.cfm_steps,
        )[0]


@VARIANTS
def test_frames_are_those_of_the_stock_package(variant: Variant) -> None:
    flow = flow_of(variant)
    job = job_of(flow, variant, 31)
    (ours,) = flow.mels([job])
    stock = stock_mel(variant, flow, job)
    assert stock.std() > 0.1
    torch.testing.assert_close(ours[:, job.prompt_frames :], stock, atol=1e-4, rtol=0)


def test_tokens_that_are_only_looked_at_make_no_frames_but_change_the_ones_before() -> None:
    """The stock package's own way there trims its frames and not their mask."""
    flow, s3gen = flow_of(CHATTERBOX), small(CHATTERBOX)
    job = job_of(flow, CHATTERBOX, 20, lookahead=3)
    (ours,) = flow.mels([job])
    noise = flow.noise([job], job.frames)
    with torch.inference_mode(), our_noise(s3gen, noise):
        stock = s3gen.flow
        length = torch.tensor([len(job.tokens)])
        h, _ = stock.encoder(stock.input_embedding(torch.from_numpy(job.tokens)[None]), length)
        mu = stock.encoder_proj(h[:, :-6]).transpose(1, 2)
        known = torch.zeros_like(mu)
        known[:, :, : job.prompt_frames] = job.given[0]
        mask = torch.ones(1, 1, job.frames)
        theirs, _ = stock.decoder(mu, mask, 10, spks=job.speaker[None], cond=known)
    torch.testing.assert_close(ours, theirs[0], atol=1e-4, rtol=0)
    blind = replace(job, tokens=job.tokens[:-3], lookahead=0)
    assert (flow.mels([blind])[0] - ours).abs().max() > 1e-3


@VARIANTS
def test_frames_do_not_depend_on_neighbours_or_on_what_fills_a_bucket(variant: Variant) -> None:
    alone, filled = flow_of(variant), flow_of(variant, bucket=40)
    jobs = [
        job_of(alone, variant, 24, 3),
        job_of(alone, variant, 30, 0, seed=5),
        job_of(alone, variant, 9, 3, seed=6),
    ]
    assert len({filled.key(job) for job in jobs}) == 1
    assert len({alone.key(job) for job in jobs}) == 3
    together = filled.mels(jobs)
    for job, frames in zip(jobs, together, strict=True):
        (single,) = alone.mels([job])
        assert frames.shape == single.shape == (80, job.frames)
        torch.testing.assert_close(frames, single, atol=1e-5, rtol=0)


def test_chunk_masks_are_those_of_the_stock_package() -> None:
    flow, s3gen = flow_of(CHATTERBOX), small(CHATTERBOX)
    job = job_of(flow, CHATTERBOX, 40, chunked=True)
    (ours,) = flow.mels([job])
    s3gen.flow.encoder.static_chunk_size = 25
    s3gen.flow.decoder.estimator.static_chunk_size = 50
    own = torch.from_numpy(job.tokens[job.prompt_frames // 2 :])[None]
    with torch.inference_mode(), our_noise(s3gen, flow.noise([job], job.frames)):
        theirs = s3gen(
            own, ref_wav=None, ref_sr=None, ref_dict=stock_voice(CHATTERBOX), finalize=True, skip_vocoder=True,
            n_cfm_timesteps=10,
        )[0]  # fmt: skip
    torch.testing.assert_close(ours[:, job.prompt_frames :], theirs, atol=1e-4, rtol=0)
    whole = flow.mels([replace(job, chunked=False)])[0]
    assert (whole - ours).abs().max() > 1e-3


def test_noise_goes_by_the_position_in_the_stream() -> None:
    flow = flow_of(TURBO)
    job = job_of(flow, TURBO, 30)
    noise = flow.noise([job], job.frames)[0]
    later = replace(job, tokens=job.tokens[10:], first_frame=20)
    shifted = flow.noise([later], later.frames)[0]
    prompt = job.prompt_frames
    assert torch.equal(noise[:, :prompt], shifted[:, :prompt])
    assert torch.equal(noise[:, prompt + 20 :], shifted[:, prompt:])
    assert noise.mean().abs() < 0.05
    assert abs(noise.std().item() - 1) < 0.05


@VARIANTS
@pytest.mark.parametrize(("dtype", "bucket"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float16, 40)])
def test_a_lower_precision_is_the_estimators_alone(variant: Variant, dtype: torch.dtype, bucket: int) -> None:
    exact, rough = flow_of(variant), flow_of(variant, bucket, dtype)
    job = job_of(exact, variant, 20, 3)
    (one,), (other,) = exact.mels([job]), rough.mels([job])
    assert other.dtype == torch.float32
    assert rough._encoder.after_norm.weight.dtype == torch.float32
    difference = (one - other)[:, job.prompt_frames :]
    assert 0 < difference.std() < 0.05 * one.std()


def test_nothing_asks_the_device_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of(CHATTERBOX, bucket=16)
    jobs = [replace(job_of(flow, CHATTERBOX, 20, 3), steps=2)]
    flow.mels(jobs)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a host sync")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    flow.mels(jobs)
