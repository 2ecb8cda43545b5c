"""What comes before the text in T3: a voice's conditioning as KV, kept per voice and exaggeration."""

from __future__ import annotations

from collections import OrderedDict

import torch

from pipeline.engines.chatterbox.backbone import Cache, Pass, T3Net
from pipeline.engines.chatterbox.conditionals import T3Conditionals
from pipeline.engines.chatterbox.conditioning import Conditioning


class Prefixes:
    """The KV of what comes before the text, made once for each voice and exaggeration; the least used go first.

    ``most_bytes`` bounds what is kept, except that the last one made always is.
    """

    def __init__(self, net: T3Net, conditioning: Conditioning, most_bytes: int) -> None:
        self._net, self._conditioning, self._most_bytes = net, conditioning, most_bytes
        self._kept: OrderedDict[tuple[int, float], tuple[T3Conditionals, torch.Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @torch.inference_mode()
    def of(self, voice: T3Conditionals, exaggeration: float) -> torch.Tensor:
        """(layers, 2, heads, vectors, head_dim)."""
        key = (id(voice), exaggeration)
        if key not in self._kept:
            made = self._make(voice, exaggeration)
            self._kept[key] = (voice, made)  # the voice is kept as well, so that its id stays its own
            self._bytes += made.nbytes
        self._kept.move_to_end(key)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
        return self._kept[key][1]

    def _make(self, voice: T3Conditionals, exaggeration: float) -> torch.Tensor:
        weight = self._net.speech_emb.weight
        x = self._conditioning(voice, exaggeration).to(weight.dtype)
        cache = Cache(self._net.backbone.shape, 1, x.shape[1], weight.device, weight.dtype)
        self._net.backbone(x, Pass(cache, torch.arange(x.shape[1], device=weight.device)[None], x.shape[1]))
        return cache.take(0, x.shape[1])

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._bytes = 0
