"""What T3 hears before the text: the speaker, the beginning of the reference recording, and how lively to be.

The weights are those of the stock module's ``cond_enc``; the arithmetic is written out here because the package's own
runs through calls that current versions of torch have deprecated.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from chatterbox.models.t3 import T3
from torch import nn
from torch.nn import functional

from pipeline.engines.chatterbox.conditionals import T3Conditionals


class _Perceiver(nn.Module):
    """A prompt of any length to a fixed number of vectors: one block, used twice (on the prompt, on its result)."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        block = stock.attn
        self.heads = block.num_heads
        self.query = nn.Parameter(stock.pre_attention_query.detach().clone(), requires_grad=False)
        self.norm, self.out = deepcopy(block.norm), deepcopy(block.proj_out)
        self.to_q, self.to_k, self.to_v = deepcopy(block.to_q), deepcopy(block.to_k), deepcopy(block.to_v)

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        first = self._attend(self.query.expand(prompt.shape[0], -1, -1), prompt)
        return self._attend(first, first)

    def _attend(self, to: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
        seen = self.norm(over)
        q, k, v = self._split(self.to_q(self.norm(to))), self._split(self.to_k(seen)), self._split(self.to_v(seen))
        heard = functional.scaled_dot_product_attention(q, k, v)
        return to + self.out(heard.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Conditioning(nn.Module):
    """In float32, whatever the backbone's type: it runs once a voice."""

    def __init__(self, t3: T3) -> None:
        super().__init__()
        stock = t3.cond_enc
        self.speaker = deepcopy(stock.spkr_enc)
        self.emotion = deepcopy(stock.emotion_adv_fc)
        self.perceiver = None if stock.perceiver is None else _Perceiver(stock.perceiver)
        self.speech_emb = t3.speech_emb
        self.speech_pos = None if t3.is_gpt else t3.speech_pos_emb.emb

    def vectors(self, prompt_tokens: int) -> int:
        """How many vectors a prompt of that many tokens becomes, with speaker and emotion."""
        prompt = prompt_tokens if self.perceiver is None else self.perceiver.query.shape[1]
        return 1 + int(prompt) + (self.emotion is not None)

    def forward(self, voice: T3Conditionals, exaggeration: float) -> torch.Tensor:
        """(1, vectors, width) float32."""
        where = self.speaker.weight.device
        ids = voice.prompt_tokens.to(where).reshape(1, -1)
        prompt = self.speech_emb(ids).float()
        if self.speech_pos is not None:
            prompt = prompt + self.speech_pos(torch.arange(ids.shape[1], device=where)).float()
        if self.perceiver is not None:
            prompt = self.perceiver(prompt)
        parts = [self.speaker(voice.speaker.to(where).float().reshape(1, 1, -1)), prompt]
        if self.emotion is not None:
            parts.append(self.emotion(torch.full((1, 1, 1), exaggeration, device=where)))
        return torch.cat(parts, dim=1)
