"""What tests and benchmarks compare: all results of a module, with tolerances that are derived."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Results = dict[str, Tensor]


def packed_call(
    module: nn.Module,
    x: Tensor,  # [T, B, D]
    hx: Any,
    lengths: Tensor,  # [B]
) -> tuple[Tensor, Any]:
    """`module(x, hx)` over a PackedSequence of these lengths, output padded to T again."""
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    y, final = module(packed, hx)
    assert isinstance(y, PackedSequence)
    return pad_packed_sequence(y, total_length=len(x))[0], final


def collect(
    module: nn.Module, x: Tensor, y: Tensor, final: Any, initial: tuple[Tensor, ...]
) -> Results:
    """Outputs, final states and the gradients of everything, from one fixed random cotangent.

    The cotangent's elements are small integers, the same in every dtype.
    """
    states = final if isinstance(final, tuple) else (final,)
    outputs = {"y": y, **{f"final{n}": state for n, state in enumerate(states)}}
    inputs = {
        "x": x,
        **{f"initial{n}": state for n, state in enumerate(initial)},
        **dict(module.named_parameters()),
    }
    generator = torch.Generator().manual_seed(0)
    cotangent = [
        torch.randint(-3, 4, value.shape, generator=generator).to(value)
        for value in outputs.values()
    ]
    gradients = torch.autograd.grad(list(outputs.values()), list(inputs.values()), cotangent)
    results = outputs | {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}
    return {name: value.detach() for name, value in results.items()}


def errors(results: Results, exact: Results) -> dict[str, float]:
    """Largest error of each result; `exact` holds them in float64."""
    assert results.keys() == exact.keys()
    for name, truth in exact.items():
        assert results[name].shape == truth.shape, f"{name}: {results[name].shape}, {truth.shape}"
    return {name: _largest(results[name].double() - exact[name]) for name in exact}


def assert_as_accurate(ours: Results, exact: Results, *rivals: dict[str, float]) -> None:
    """Each error of `ours` is at most twice the worst rival's plus 4 eps of the largest value.

    Raises:
        AssertionError: names the results that are further off.
    """
    far = []
    for name, error in errors(ours, exact).items():
        eps = torch.finfo(ours[name].dtype).eps
        bound = 2 * max(rival[name] for rival in rivals) + 4 * eps * _largest(exact[name])
        if not error <= bound:
            far.append(f"{name}: error {error:.2e}, bound {bound:.2e}")
    assert not far, "; ".join(far)


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0
