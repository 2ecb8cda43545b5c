"""T3's places for many streams on a machine of ordinary size."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

pytest.importorskip("chatterbox")

import torch

from pipeline.engines.chatterbox import build
from pipeline.engines.chatterbox.backbone import Cache, Shape
from pipeline.engines.chatterbox.variants import CHATTERBOX
from tests.pipeline.engines.chatterbox.t3_tools import half, limited, segment, speak

pytestmark = pytest.mark.chatterbox

MIB = 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_on_the_cpu_take_memory_only_when_they_are_used(dtype: torch.dtype) -> None:
    """Of the full-size model those of 64 streams would be 50 GB."""
    process = psutil.Process()
    before = process.memory_info().rss
    cache = Cache(Shape(layers=2, heads=16, head_dim=64, width=1024), 128, 1600, torch.device("cpu"), dtype)
    assert process.memory_info().rss - before < 64 * MIB
    assert cache.layers[0].shape == (2, 128, 16, 1600, 64)
    assert cache.layers[0].dtype == dtype
    assert cache.layers[0].is_contiguous()
    assert not cache.take(127, 3).any()
    cache.layers[1][:, 5, :, :2] = 1
    assert cache.take(5, 3).sum() == 2 * 16 * 2 * 64


def test_there_are_no_more_streams_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = half(CHATTERBOX, limited(20), max_batch=6)
    assert roomy.facts.max_batch == 6
    cache = roomy._decoder.cache
    each = sum(layer.nbytes for layer in cache.layers) // 6
    memory = SimpleNamespace(available=int(3.5 * each / build.CACHE_SHARE))
    monkeypatch.setattr(build.psutil, "virtual_memory", lambda: memory)
    tight = half(CHATTERBOX, limited(20), max_batch=6)
    assert tight.facts.max_batch == 3
    made = [b"".join(step.data for step in speak(model, segment("Hi there."))) for model in (roomy, tight)]
    assert made[0] == made[1]
