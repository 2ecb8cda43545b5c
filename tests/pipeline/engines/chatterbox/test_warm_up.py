"""Which shapes are captured, and that streams have no other; the graphs themselves where there is a GPU."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("chatterbox")

import numpy as np
import torch

from pipeline.engines.chatterbox.continuity import Continuity
from pipeline.engines.chatterbox.replay import Replay
from pipeline.engines.chatterbox.sounding import Rules
from pipeline.engines.chatterbox.variants import TURBO
from pipeline.engines.chatterbox.warm_up import flow_lengths, hift_lengths, rows
from tests.pipeline.engines.chatterbox.s3gen_tools import audio_half, joined, ladder, rendered, segment, speech

pytestmark = pytest.mark.chatterbox


def test_rows_are_powers_of_two_and_the_most() -> None:
    assert rows(1) == [1]
    assert rows(6) == [6, 4, 2, 1]
    assert rows(16) == [16, 8, 4, 2, 1]


def test_streams_on_the_ladder_have_no_shapes_but_those_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = audio_half(TURBO)
    audio._flow.bucket_tokens, audio._hift.bucket_frames = 32, 16
    flows, windows = [], []
    mels, sounds = audio._flow.mels, audio._hift.sounds

    def seen_mels(jobs: Any) -> Any:
        flows.append(audio._flow.key(jobs[0])[0])
        return mels(jobs)

    def seen_sounds(jobs: Any) -> Any:
        length, final = audio._hift.key(jobs[0])
        windows.extend([] if final else [length])
        return sounds(jobs)

    monkeypatch.setattr(audio._flow, "mels", seen_mels)
    monkeypatch.setattr(audio._hift, "sounds", seen_sounds)
    for voice, tokens in (("anna", 120), ("bert", 31)):
        rendered(audio, speech(tokens), ladder(tokens, (7, 12, 25)), segment(voice))
    rules = Rules(Continuity())
    assert set(flows) <= set(flow_lengths(rules, 2.0, (7, 12, 25), 32))
    assert set(windows) <= set(hift_lengths(rules, (7, 12, 25), 16))


def test_without_rungs_nothing_is_to_be_captured() -> None:
    rules = Rules(Continuity())
    assert flow_lengths(rules, 2.0, (), 32) == []
    assert hift_lengths(rules, (), 16) == []


def test_without_a_graph_the_function_is_called() -> None:
    replay = Replay(lambda x, y: x if y is None else x + y)
    one = torch.ones(3)
    assert replay(one, None) is one
    assert replay(one, one).tolist() == [2, 2, 2]
    assert len(replay) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_sound_as_no_graphs_do() -> None:
    plain = audio_half(TURBO, device="cuda:0")
    for replay in (plain._flow.encoder, plain._flow.step, plain._hift.window):
        assert len(replay) > 0
    tokens = speech(80)
    graphed = joined(rendered(plain, tokens, ladder(80, (7, 12, 25))))
    for replay in (plain._flow.encoder, plain._flow.step, plain._hift.window):
        replay._captured.clear()
    eager = joined(rendered(plain, tokens, ladder(80, (7, 12, 25))))
    np.testing.assert_allclose(graphed, eager, atol=1e-3)
