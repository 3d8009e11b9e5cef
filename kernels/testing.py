"""What tests and benchmarks compare: all results of a module, with tolerances that are derived."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Results = dict[str, Tensor]

#: (module, x, hx) -> y and final states
Way = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]

#: Distance from 1 to the next number of NVIDIA's 10 bits of mantissa.
TF32_EPS = 2.0**-10


@contextmanager
def float32_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """float32 matrix products as IEEE says or on tf32, in cuDNN and here alike.

    torch's own switches, of which this is both: cuDNN's for its recurrent layers, and
    `torch.set_float32_matmul_precision`, whose effect the triton backend reads.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def packed_call(
    module: nn.Module,
    x: Tensor,  # [T, B, D]
    hx: Any,
    lengths: Tensor,  # [B]
    enforce_sorted: bool = False,
) -> tuple[Tensor, Any]:
    """`module(x, hx)` over a PackedSequence of these lengths, output padded to T again."""
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=enforce_sorted)
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


def initial_states(module: nn.RNNBase, B: int) -> tuple[Tensor, ...]:
    """Random initial h and, for an LSTM, c, exact in the dtype of the module's weights."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    weight = next(module.parameters())
    sizes = [module.proj_size or module.hidden_size]
    if module.mode == "LSTM":
        sizes.append(module.hidden_size)
    return tuple(torch.randn(rows, B, size).to(weight) for size in sizes)


def results(
    module: nn.Module,
    way: Way,
    x: Tensor,
    initial: tuple[Tensor, ...] = (),
    autocast: torch.dtype | None = None,
) -> Results:
    """`collect` of `way`, run on copies of the inputs in the dtype of the module's weights."""
    dtype = next(module.parameters()).dtype
    x, *states = (value.detach().to(dtype, copy=True).requires_grad_() for value in (x, *initial))
    hx: Any = None
    if states:
        hx = tuple(states) if module.mode == "LSTM" else states[0]
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        y, final = way(module, x, hx)
    return collect(module, x, y, final, tuple(states))


def assert_matches_torch(
    ours: nn.Module,
    theirs: nn.Module,  # the torch.nn module with the same weights
    x: Tensor,  # [T, B, D], exact in the modules' dtype
    lengths: Tensor,  # [B]
    initial: tuple[Tensor, ...] = (),  # states
    eps: float | None = None,
    autocast: torch.dtype | None = None,
) -> None:
    """Every output, final state and gradient of `ours` is as accurate as torch.nn's.

    The truth is torch.nn in float64 over a PackedSequence; rivals in the modules' dtype are
    both of torch's ways, PackedSequence and padded: they round differently (oneDNN's padded one
    sums bias gradients less exactly), and neither is a better judge than the other. One that
    cuDNN refuses is left out, which brings the bound closer.

    Raises:
        AssertionError: names the results that are further off than `assert_as_accurate` allows.
    """

    def packed(module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        return packed_call(module, x, hx, lengths)

    def padded(module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        y, final = module(x, hx)
        return y, final

    def exactly(module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        y, final = module(x, hx, lengths.to(x.device))
        return y, final

    double = copy.deepcopy(theirs).double()
    exact = results(double, packed, x, initial)
    exact_padded = results(double, padded, x, initial)
    rivals = []
    for way, truth in ((packed, exact), (padded, exact_padded)):
        with suppress(RuntimeError):
            rivals.append(errors(results(theirs, way, x, initial, autocast), truth))
    if autocast is not None:
        eps = torch.finfo(autocast).eps
    assert_as_accurate(results(ours, exactly, x, initial, autocast), exact, *rivals, eps=eps)


def errors(got: Results, exact: Results) -> dict[str, float]:
    """Largest error of each result; `exact` holds them in float64."""
    assert got.keys() == exact.keys()
    for name, truth in exact.items():
        assert got[name].shape == truth.shape, f"{name}: {got[name].shape}, {truth.shape}"
    return {name: _largest(got[name].double() - exact[name]) for name in exact}


def assert_as_accurate(
    ours: Results, exact: Results, *rivals: dict[str, float], eps: float | None = None
) -> None:
    """Each error of `ours` is at most twice the worst rival's plus 4 eps of the largest value.

    `eps` is that of the computation where it is not that of the results' dtype, as for tf32.

    Raises:
        AssertionError: names the results that are further off.
    """
    far = []
    for name, error in errors(ours, exact).items():
        unit = eps or torch.finfo(ours[name].dtype).eps
        theirs = max((rival[name] for rival in rivals), default=0.0)
        bound = 2 * theirs + 4 * unit * _largest(exact[name])
        if not error <= bound:
            far.append(f"{name}: error {error:.2e}, bound {bound:.2e}")
    assert not far, "; ".join(far)


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0
