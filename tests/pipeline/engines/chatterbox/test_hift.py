"""Mel frames to sound: as the stock vocoder does, and in windows as in one."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("chatterbox")

import torch

from pipeline.engines.chatterbox.hift import HELD_FRAMES, LEFT_FRAMES, Hift, HiftJob, _Fourier, fold_weight_norm, phases
from pipeline.engines.chatterbox.position_noise import seed_words
from pipeline.engines.chatterbox.variants import CHATTERBOX
from tests.pipeline.engines.chatterbox.s3gen_tools import SEED, our_noise, small

pytestmark = pytest.mark.chatterbox

CPU = torch.device("cpu")
FRAMES = 120


@pytest.fixture(scope="module")
def stock() -> Any:
    return small(CHATTERBOX)


@pytest.fixture(scope="module")
def hift() -> Hift:
    return Hift(small(CHATTERBOX), CPU)


def mel_of(frames: int = FRAMES) -> torch.Tensor:
    """(80, frames) that move like speech does: slowly, with a few jumps."""
    generator = torch.Generator().manual_seed(3)
    knots = torch.randn(1, 80, frames // 6 + 2, generator=generator)
    mel = torch.nn.functional.interpolate(knots, frames, mode="linear")[0]
    mel[:, frames // 3 :: frames // 3] -= 4
    return mel


def job_of(mel: torch.Tensor, first: int = 0, phase: float = 0.0, next_anchor: int = 0, **other: Any) -> HiftJob:
    given: dict[str, Any] = {"anchor": 0, "seed": SEED, "final": True}
    return HiftJob(mel=mel, first_frame=first, phase=phase, next_anchor=next_anchor, **given | other)


def test_the_transforms_are_those_of_torch() -> None:
    fourier, window = _Fourier(16, 4, CPU), torch.hann_window(16)
    sound = torch.randn(2, 1, 480)
    theirs = torch.view_as_real(torch.stft(sound[:, 0], 16, 4, 16, window=window, return_complex=True))
    ours = fourier.forwards(sound)
    torch.testing.assert_close(ours, torch.cat([theirs[..., 0], theirs[..., 1]], dim=1), atol=1e-5, rtol=0)
    real, imaginary = torch.randn(2, 2, 9, 121).unbind(0)
    back = torch.istft(torch.complex(real, imaginary), 16, 4, 16, window=window)
    torch.testing.assert_close(fourier.backwards(real, imaginary), back, atol=1e-5, rtol=0)


def test_the_sound_of_a_source_is_that_of_the_stock_vocoder(stock: Any, hift: Hift) -> None:
    mel, source = mel_of()[None], 0.1 * torch.randn(1, 1, 480 * FRAMES)
    with torch.inference_mode():
        theirs = stock.mel2wav.decode(x=mel, s=source)
        ours = hift.decode(mel, source)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_source_is_the_stock_one_with_the_streams_phases_and_noise(stock: Any, hift: Hift) -> None:
    pitch_hz = torch.cat([torch.linspace(90, 210, 60), torch.full((20,), 3.0), torch.linspace(200, 150, 40)])[None]
    with torch.inference_mode(), our_noise(stock, torch.zeros(1, 80, 1)):
        upsampled = stock.mel2wav.f0_upsamp(pitch_hz[:, None]).transpose(1, 2)
        theirs = stock.mel2wav.m_source(upsampled)[0].transpose(1, 2)
    facts = torch.tensor([[*seed_words(SEED), 0, 0, 0]])
    turns = torch.tensor([[0.0, *phases(SEED, 9)]], dtype=torch.float64)
    with torch.inference_mode():
        ours = hift.source(pitch_hz, facts, turns)
    assert theirs.std() > 0.01
    # the stock phase is a float32 sum over the whole sound: that is what differs
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_whole_stream_sounds_as_with_the_stock_vocoder(stock: Any, hift: Hift) -> None:
    mel = mel_of(60)
    with torch.inference_mode(), our_noise(stock, torch.zeros(1, 80, 1)):
        theirs, _ = stock.mel2wav.inference(mel[None])
    ours, _ = hift.sounds([job_of(mel)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rung", [6, 14, 50])
def test_windows_sound_as_the_whole(hift: Hift, rung: int) -> None:
    mel = mel_of()
    whole = hift.sounds([job_of(mel)])[0][0]
    phase, sounded = 0.0, 0
    for end in range(rung, FRAMES + 1, rung):
        sounding = max(sounded, end - HELD_FRAMES)
        if sounding == sounded:
            continue
        begin, anchor = max(0, sounded - LEFT_FRAMES - 5), max(0, sounded - LEFT_FRAMES)
        job = job_of(
            mel[:, begin:end], begin, phase, max(0, sounding - LEFT_FRAMES) - begin, anchor=anchor - begin, final=False
        )
        sound, bits = hift.sounds([job])
        phase = float(bits.contiguous().view(torch.float64)[0, 0])
        window = sound[0, (sounded - begin) * 480 : (sounding - begin) * 480]
        torch.testing.assert_close(window, whole[sounded * 480 : sounding * 480], atol=1e-4, rtol=0)
        sounded = sounding
    assert sounded > FRAMES // 2


def test_a_phase_that_is_not_carried_is_heard(hift: Hift) -> None:
    """The test above can fail."""
    mel = mel_of()
    whole = hift.sounds([job_of(mel)])[0][0]
    sound, _ = hift.sounds([job_of(mel[:, 40:], 40, phase=0.3)])
    inner = slice(LEFT_FRAMES * 480, -480)
    assert (sound[0][inner] - whole[40 * 480 :][inner]).abs().max() > 1e-3


def test_weights_are_folded_and_nothing_is_normed_at_run_time(stock: Any, hift: Hift) -> None:
    assert [name for name, _ in stock.mel2wav.named_parameters() if "parametrizations" in name]
    assert not [name for name, _ in hift._net.named_parameters() if "parametrizations" in name]


def test_folding_leaves_copies_of_the_model_alone() -> None:
    one, copy = (small(CHATTERBOX).mel2wav for _ in range(2))
    mel, source = mel_of(20)[None], torch.zeros(1, 1, 9600)
    with torch.inference_mode():
        before = copy.decode(x=mel, s=source)
        torch.testing.assert_close(fold_weight_norm(one).decode(x=mel, s=source), before, atol=1e-6, rtol=0)
        assert torch.equal(copy.decode(x=mel, s=source), before)


def test_streams_together_sound_as_each_alone() -> None:
    hift = Hift(small(CHATTERBOX), CPU, bucket_frames=32)
    mels = [mel_of(64), mel_of(80)[:, 10:74], mel_of(50)]
    jobs = [
        job_of(mel, 7 * index, 0.1 * index, 20, seed=index, final=False, anchor=index) for index, mel in enumerate(mels)
    ]
    assert len({hift.key(job) for job in jobs}) == 1
    sounds, bits = hift.sounds(jobs)
    for row, job in enumerate(jobs):
        alone, its = hift.sounds([job])
        torch.testing.assert_close(sounds[row], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(bits[row].view(torch.float64), its[0].view(torch.float64), atol=1e-5, rtol=0)


def test_a_bucket_changes_only_what_is_held_back(hift: Hift) -> None:
    filled = Hift(small(CHATTERBOX), CPU, bucket_frames=32)
    mel = mel_of(70)
    plain, _ = hift.sounds([job_of(mel, final=False)])
    padded, _ = filled.sounds([job_of(mel, final=False)])
    heard = (70 - HELD_FRAMES) * 480
    torch.testing.assert_close(padded[:, :heard], plain[:, :heard], atol=1e-4, rtol=0)


def test_the_last_window_keeps_its_own_length() -> None:
    filled = Hift(small(CHATTERBOX), CPU, bucket_frames=32)
    assert filled.sounds([job_of(mel_of(41))])[0].shape == (1, 41 * 480)


def test_nothing_asks_the_device_for_a_number(hift: Hift, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job_of(mel_of(30))]
    hift.sounds(jobs)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a host sync")

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    hift.sounds(jobs)
