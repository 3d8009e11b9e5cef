"""What stands past an utterance's end is nothing: laws that hold for all batches."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels

MODULES = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("LSTM", {"cifg": True, "peephole": True}),
    ("GRU", {}),
    ("RNN", {"nonlinearity": "relu"}),
]
BACKENDS = ["torch", "reference"]

cases = pytest.mark.parametrize(("name", "options"), MODULES, ids=str)
backends = pytest.mark.parametrize("backend", BACKENDS)
all_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**31 - 1)


def _module(name: str, options: dict[str, Any], backend: str) -> torch.nn.Module:
    return getattr(kernels, name)(
        3, 4, num_layers=2, bidirectional=True, dtype=torch.float64, backend=backend, **options
    )


def _flat(result: tuple[torch.Tensor, Any]) -> list[torch.Tensor]:
    y, final = result
    return [y, *(final if isinstance(final, tuple) else (final,))]


def _assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    # Another batch is another order of summation: sums of 10 terms through 2 x 9 steps.
    torch.testing.assert_close(got, expected, rtol=0, atol=200 * torch.finfo(torch.float64).eps)


@cases
@backends
@settings(max_examples=15)
@given(lengths=all_lengths, seed=seeds)
def test_a_batch_equals_each_utterance_alone(
    name: str, options: dict[str, Any], backend: str, lengths: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    module = _module(name, options, backend)
    x = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64)
    y, *finals = _flat(module(x, None, torch.tensor(lengths)))
    for n, length in enumerate(lengths):
        alone, *alone_finals = _flat(module(x[:length, n]))
        _assert_same(y[:length, n], alone)
        assert (y[length:, n] == 0).all()
        for final, expected in zip(finals, alone_finals, strict=True):
            _assert_same(final[:, n], expected)


@cases
@backends
@settings(max_examples=15)
@given(lengths=all_lengths, more=st.integers(1, 5), seed=seeds)
def test_more_padding_changes_nothing(
    name: str, options: dict[str, Any], backend: str, lengths: list[int], more: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module = _module(name, options, backend)
    T = max(lengths)
    x = torch.randn(T + more, len(lengths), 3, dtype=torch.float64)
    short = _flat(module(x[:T], None, torch.tensor(lengths)))
    long = _flat(module(x, None, torch.tensor(lengths)))
    _assert_same(long[0][:T], short[0])
    assert (long[0][T:] == 0).all()
    for got, expected in zip(long[1:], short[1:], strict=True):
        _assert_same(got, expected)


@cases
@backends
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e300])
def test_garbage_in_the_padding_changes_nothing(
    name: str, options: dict[str, Any], backend: str, garbage: float
) -> None:
    torch.manual_seed(0)
    module = _module(name, options, backend)
    lengths = torch.tensor([2, 7, 1, 5])
    past = torch.arange(7).unsqueeze(-1) >= lengths  # [T, B]
    clean = torch.randn(7, 4, 3, dtype=torch.float64)
    results = []
    for filling in (0.0, garbage):
        x = clean.masked_fill(past.unsqueeze(-1), filling).requires_grad_()
        outputs = _flat(module(x, None, lengths))
        loss = sum((value**2).sum() for value in outputs)
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        assert (gradients[0][past] == 0).all()
        assert gradients[0][~past].abs().min() > 0
        results.append([*outputs, *gradients])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@cases
@backends
def test_nan_in_an_utterance_stays_in_it(name: str, options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    module = _module(name, options, backend)
    lengths = torch.tensor([4, 7])
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    y, *finals = _flat(module(x, None, lengths))
    x[1, 0] = float("nan")
    spoilt, *spoilt_finals = _flat(module(x, None, lengths))
    assert spoilt[:4, 0].isnan().all()
    assert (spoilt[4:, 0] == 0).all()
    _assert_same(spoilt[:, 1], y[:, 1])
    for got, expected in zip(spoilt_finals, finals, strict=True):
        assert got[:, 0].isnan().all()
        _assert_same(got[:, 1], expected[:, 1])


def test_huge_weights_do_not_outweigh_the_hold() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(3, 4)
    ours = kernels.LSTM(3, 4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(1e6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    _, (h, c) = ours(x, None, torch.tensor([5, 2]))
    _, (alone_h, alone_c) = theirs(x[:2, 1])
    assert torch.equal(h[:, 1], alone_h)
    assert torch.equal(c[:, 1], alone_c)
