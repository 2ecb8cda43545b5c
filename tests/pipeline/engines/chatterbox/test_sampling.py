"""Filters as the stock package has them, and chance that depends on seed, position and id alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("chatterbox")

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.engines.chatterbox.sampling import (
    MOST,
    Parameters,
    Sampling,
    choose,
    log_exponential,
    processed,
    row_of,
    scattered,
    seed_keys,
)
from pipeline.engines.chatterbox.speaking import NOT_A_NUMBER, NOTHING_LEFT

pytestmark = pytest.mark.chatterbox

VOCABULARY = 6563


def draw(chance: torch.Generator) -> Sampling:
    """Parameters at random, now and then at the ends of their ranges."""

    def pick(*values: float) -> float:
        return values[int(torch.randint(len(values), (), generator=chance))]

    return Sampling(
        temperature=pick(0.05, 0.8, 1.0, 1.7, 5.0),
        top_p=pick(0.01, 0.5, 0.95, 1.0),
        min_p=pick(0.0, 0.05, 0.3, 1.0),
        top_k=int(pick(0, 1, 50, 1000, 5000, 10_000)),
        repetition_penalty=pick(1.0, 1.2, 2.0, 10.0),
        cfg_weight=0.5,
        seed=0,
    )


def by_stock(logits: torch.Tensor, said: torch.Tensor, asked: Sampling, turbo: bool) -> torch.Tensor:
    """In the order of the stock loops."""
    penalty = RepetitionPenaltyLogitsProcessor(penalty=asked.repetition_penalty)
    if turbo:
        warpers = LogitsProcessorList()
        if asked.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(asked.temperature))
        if asked.top_k > 0:
            warpers.append(TopKLogitsWarper(asked.top_k))
        if asked.top_p < 1.0:
            warpers.append(TopPLogitsWarper(asked.top_p))
        warpers.append(penalty)
        return warpers(said, logits)
    logits = penalty(said, logits) / asked.temperature
    return TopPLogitsWarper(top_p=asked.top_p)(said, MinPLogitsWarper(min_p=asked.min_p)(said, logits))


@pytest.mark.parametrize("turbo", [False, True])
def test_probabilities_equal_the_stock_processors(turbo: bool) -> None:
    chance = torch.Generator().manual_seed(5)
    for round_ in range(60):
        asked = [draw(chance) if turbo else replace(draw(chance), top_k=0) for _ in range(3)]
        logits = 4 * torch.randn(3, VOCABULARY, generator=chance)
        factor, expected = torch.ones(3, VOCABULARY), []
        for entry, one in enumerate(asked):
            said = torch.randint(VOCABULARY, (1, 1 + 40 * (round_ % 3)), generator=chance)
            factor[entry, said[0]] = one.repetition_penalty
            expected.append(by_stock(logits[entry : entry + 1], said, one, turbo).softmax(dim=-1))
        by = Parameters.of(torch.tensor([row_of(one, VOCABULARY) for one in asked]))
        most = max(one.most for one in asked)
        got = processed(logits, factor, by, turbo, most).softmax(dim=-1)
        assert (got - torch.cat(expected)).abs().max() < 1e-5, asked


def test_sorting_less_filters_the_same() -> None:
    chance = torch.Generator().manual_seed(6)
    logits, ones = 3 * torch.randn(2, VOCABULARY, generator=chance), torch.ones(2, VOCABULARY)
    narrow = Sampling(0.8, 0.95, 0.0, 1000, 1.2, 0.0, 0)
    by = Parameters.of(
        torch.tensor([row_of(narrow, VOCABULARY), row_of(Sampling(0.8, 1, 0, 0, 1.2, 0, 0), VOCABULARY)])
    )
    some, every = (processed(logits, ones, by, True, most) for most in MOST[1:])
    assert torch.equal(some, every)
    assert torch.equal(some[1], logits[1] / 0.8), "who asks for no limit has none, whoever else does"


def noise(seed: int, positions: list[int], vocabulary: int = VOCABULARY) -> torch.Tensor:
    keys = torch.tensor([seed_keys(seed)], dtype=torch.int32)
    return log_exponential(keys, torch.tensor([positions]), scattered(vocabulary, "cpu"))[0]


def test_chance_is_the_same_in_any_batch_and_round() -> None:
    ids = scattered(VOCABULARY, "cpu")
    seeds = [0, 1, 2**63, 2**64 - 1, -5]
    keys = torch.tensor([seed_keys(seed) for seed in seeds], dtype=torch.int32)
    positions = torch.arange(8).repeat(len(seeds), 1) * 100
    together = log_exponential(keys, positions, ids)
    for entry, seed in enumerate(seeds):
        for place in range(8):
            assert torch.equal(together[entry, place], noise(seed, [100 * place])[0])
    assert len({row.sum().item() for row in together.flatten(0, 1)}) == together.shape[0] * together.shape[1]


def test_chance_is_known_and_stays_as_it_is() -> None:
    """Whoever changes this changes what every seed says, and what comes after a resume by another version."""
    found = noise(7, [0, 12])[:, :3].exp()
    assert found.flatten().tolist() == pytest.approx(KNOWN, rel=1e-4)


KNOWN = [3.192877, 0.736121, 0.092211, 0.111933, 0.447268, 0.351122]


def test_noise_is_exponential_and_independent() -> None:
    made = noise(11, list(range(64))).double().exp()
    assert made.mean().item() == pytest.approx(1.0, abs=0.01)
    assert made.var().item() == pytest.approx(1.0, abs=0.03)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert (made < -math.log1p(-share)).double().mean().item() == pytest.approx(share, abs=0.003)
    for step in (1, 2, 3, 9):
        for rows, others in ((made[:, step:], made[:, :-step]), (made[step:], made[:-step])):
            correlation = ((rows - 1) * (others - 1)).mean().item()
            assert abs(correlation) < 0.01
    assert noise(12, list(range(64))).isfinite().all()


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf")]])
    tries = 20_000
    luck = noise(3, list(range(tries)), vocabulary=5)
    drawn = choose(logits.expand(tries, -1), torch.ones(tries), luck)
    shares = torch.bincount(drawn, minlength=5) / tries
    assert torch.allclose(shares, logits.softmax(-1)[0], atol=0.012)
    assert choose(logits, torch.zeros(1), luck[:1]).item() == 0


def test_nothing_to_choose_from_is_told_apart_from_broken_numbers() -> None:
    logits = torch.stack((torch.full((9,), float("-inf")), torch.full((9,), float("nan")), torch.arange(9.0)))
    drawn = choose(logits, torch.zeros(3), torch.zeros(3, 9))
    assert drawn.tolist() == [NOTHING_LEFT, NOT_A_NUMBER, 8]
