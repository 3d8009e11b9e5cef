"""The persistent recurrence itself: programs that wait for each other, all running at once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from concurrent_interpreter import run_concurrently
from torch import nn

import kernels
from kernels.backends.triton import ops, sync, tiles
from kernels.backends.triton.launch import plan_for
from kernels.backends.triton.plan import Layout, Plan, Problem
from kernels.testing import (
    Results,
    assert_as_accurate,
    errors,
    initial_states,
    packed_call,
    results,
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter has the CPU")

B, T, D, H = 3, 5, 4, 10
LENGTHS = torch.tensor([2, 5, 4])
LAYOUT = Layout(block_b=2, block_h=4, block_k=4, ahead=2, num_warps=4)


@pytest.fixture(autouse=True)
def _persistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slices, two groups and two directions: twelve programs."""
    torch.set_num_threads(1)
    torch.manual_seed(4)

    def plan(problem: Problem, device: torch.device) -> Plan:
        stepped = plan_for(problem, device)
        return replace(
            stepped, layout=LAYOUT, persistent=True, slices=3, groups=2, groups_per_launch=2
        )

    monkeypatch.setattr(ops, "plan_for", plan)


def _run(
    name: str, delays: int | None, **options: Any
) -> tuple[Results, Results, dict[str, float]]:
    """(what the persistent kernels give, the truth in float64, errors of torch.nn)."""
    theirs = getattr(nn, name)(D, H, bidirectional=True, **options)
    ours = getattr(kernels, name)(D, H, bidirectional=True, backend="triton", **options)
    ours.load_state_dict(theirs.state_dict())
    x, initial = torch.randn(T, B, D).half().float(), initial_states(theirs, B)

    def packed(module: nn.Module, x: torch.Tensor, hx: Any) -> Any:
        return packed_call(module, x, hx, LENGTHS)

    def persistent(module: nn.Module, x: torch.Tensor, hx: Any) -> Any:
        return module(x, hx, LENGTHS)

    rival = results(theirs, packed, x, initial)
    exact = results(theirs.double(), packed, x, initial)
    got = run_concurrently(
        lambda: results(ours, persistent, x, initial), delays=delays, timeout=120
    )
    return got, exact, errors(rival, exact)


@pytest.mark.parametrize("delays", [None, 1])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"dtype": torch.float16}),
        ("GRU", {}),
        ("GRU", {"dtype": torch.float16}),
        ("RNN", {"nonlinearity": "relu"}),
    ],
    ids=str,
)
def test_forward_and_backward(name: str, options: dict[str, Any], delays: int | None) -> None:
    assert_as_accurate(*_run(name, delays, **options))


def test_variants_forward_and_backward() -> None:
    """All at once; with recurrent dropout the hand-over has a buffer of its own."""
    options = {"cifg": True, "peephole": True, "recurrent_dropout": 0.5, "bidirectional": True}
    module = kernels.LSTM(D, H, backend="triton", **options)
    reference = kernels.LSTM(D, H, backend="reference", **options)
    reference.load_state_dict(module.state_dict())
    x, initial = torch.randn(T, B, D), initial_states(module, B)

    def way(module: nn.Module, x: torch.Tensor, hx: Any) -> Any:
        torch.manual_seed(7)  # of the dropout
        return module(x, hx, LENGTHS)

    rival = results(reference, way, x, initial)
    exact = results(reference.double(), way, x, initial)
    got = run_concurrently(lambda: results(module, way, x, initial), delays=1, timeout=120)
    assert_as_accurate(got, exact, errors(rival, exact))


@triton.jit
def _no_wait(bits, pointers, mask, limit, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    return bits, limit


@triton.jit
def _missing_all(bits, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.min(tl.ravel((bits == -1).to(tl.int32)), axis=0)


@pytest.mark.parametrize("bug", ["does not wait", "waits for one element of a tile only"])
def test_a_planted_bug_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bug == "does not wait":
        monkeypatch.setattr(tiles, "wait", _no_wait)
    else:
        monkeypatch.setattr(sync, "missing", _missing_all)
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(*_run("LSTM", delays=1))


def test_a_wait_in_vain_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One program after another, the first waits for those that come later; and gives up."""
    monkeypatch.setattr("kernels.backends.triton.launch.POLL_LIMIT", 3)
    module = kernels.LSTM(D, H, bidirectional=True, backend="triton")
    with torch.no_grad():
        y = module(torch.randn(T, B, D))[0]
        assert y.isnan().any()
        with pytest.raises(RuntimeError, match="waited in vain"):
            module(torch.randn(T, B, D))
