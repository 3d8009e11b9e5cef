import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.denominator import log_denominator, unit_trigram

V = 3
SEQUENCES = [[1, 2], [2, 2, 1, 1], [], [1]]


def _probability(trigram: Tensor, sequence: list[int]) -> float:
    row = [0, 0, *sequence, 0]
    return math.prod(float(trigram[three]) for three in zip(row, row[1:], row[2:], strict=False))


def _by_paths(log_probs: Tensor, trigram: Tensor) -> Tensor:  # [T, V]
    """Over every path there is."""
    terms = []
    for path in itertools.product(range(V), repeat=len(log_probs)):
        sequence = [unit for unit, _ in itertools.groupby(path) if unit]
        heard = sum(log_probs[t, unit] for t, unit in enumerate(path))
        terms.append(heard + math.log(_probability(trigram, sequence)))
    return torch.stack([torch.as_tensor(term) for term in terms]).logsumexp(0)


def _emissions(B: int, T: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(B, T, V, generator=generator)).log_softmax(-1)


@given(st.integers(0, 4), st.integers(0, 1000))
def test_the_sum_is_over_every_path(T, seed):
    trigram = unit_trigram(SEQUENCES, V)
    log_probs = _emissions(1, T, seed)
    value = log_denominator(log_probs, torch.tensor([T]), trigram)
    torch.testing.assert_close(value[0], _by_paths(log_probs[0], trigram).float())


def test_the_gradient_is_that_of_the_sum():
    trigram = unit_trigram(SEQUENCES, V)
    log_probs = _emissions(1, 5).requires_grad_()
    (mine,) = torch.autograd.grad(log_denominator(log_probs, torch.tensor([5]), trigram), log_probs)
    (true,) = torch.autograd.grad(_by_paths(log_probs[0], trigram), log_probs)
    torch.testing.assert_close(mine, true)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 1000))
def test_padding_and_company_change_nothing(lengths, seed):
    trigram = unit_trigram(SEQUENCES, V)
    log_probs = _emissions(len(lengths), 7, seed)
    for b, length in enumerate(lengths):
        log_probs[b, length:] = torch.nan
    log_probs.requires_grad_()
    together = log_denominator(log_probs, torch.tensor(lengths), trigram)
    (gradient,) = torch.autograd.grad(together.sum(), log_probs)
    for b, length in enumerate(lengths):
        alone = log_denominator(log_probs[b : b + 1, :length], torch.tensor([length]), trigram)
        torch.testing.assert_close(together[b], alone[0])
        assert not gradient[b, length:].any()


def test_a_sure_network_says_what_the_trigram_thinks_of_it():
    trigram = unit_trigram(SEQUENCES, V)
    path = torch.tensor([1, 1, 0, 1, 2, 2, 0])  # 1 1 2
    log_probs = torch.nn.functional.one_hot(path, V).float().log().clamp(min=-200)[None]
    value = log_denominator(log_probs, torch.tensor([7]), trigram)
    assert float(value) == pytest.approx(math.log(_probability(trigram, [1, 1, 2])), rel=1e-5)


def test_thousands_of_frames_do_not_underflow():
    log_probs = _emissions(1, 3000).requires_grad_()
    value = log_denominator(log_probs, torch.tensor([3000]), unit_trigram(SEQUENCES, V))
    value.sum().backward()
    assert value.isfinite().all()
    assert log_probs.grad.isfinite().all()
    # The share of each frame's paths that goes through each unit.
    torch.testing.assert_close(log_probs.grad.sum(-1), torch.ones(1, 3000), rtol=1e-3, atol=1e-3)


def _count(*units: int) -> int:
    rows = [[0, 0, *sequence, 0] for sequence in SEQUENCES]
    n = len(units)
    return sum(tuple(row[k - n : k]) == units for row in rows for k in range(3, len(row) + 1))


def _smoothed(context: tuple[int, ...], unit: int, lower: float) -> float:
    following = [_count(*context, other) for other in range(V)]
    kinds = max(1, sum(n > 0 for n in following))
    return (_count(*context, unit) + kinds * lower) / (sum(following) + kinds)


def test_the_trigram_is_witten_and_bells_times_its_perplexity():
    trigram = unit_trigram(SEQUENCES, V)
    expected = torch.empty(V, V, V)
    for a, b, c in itertools.product(range(V), repeat=3):
        lower = _smoothed((b,), c, _smoothed((), c, 1 / V))
        expected[a, b, c] = _smoothed((a, b), c, lower)
    torch.testing.assert_close(expected.sum(-1), torch.ones(V, V))
    rows = [[0, 0, *sequence] for sequence in SEQUENCES]
    heard = [row[k - 2 : k + 1] for row in rows for k in range(2, len(row))]
    perplexity = math.prod(float(expected[a, b, c]) for a, b, c in heard) ** (-1 / len(heard))
    expected[..., 1:] *= perplexity
    torch.testing.assert_close(trigram, expected)
