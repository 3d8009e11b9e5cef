"""The triton backend on a card, beside torch.nn on the same card: results, gradients, NaN, graphs.

Memory that torch hands out is full of NaN, so that whatever is read before it is written shows.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import kernels
from kernels.testing import (
    TF32_EPS,
    Results,
    assert_as_accurate,
    assert_matches_torch,
    errors,
    float32_precision,
    initial_states,
    packed_call,
    results,
)

pytestmark = pytest.mark.gpu

D = 7
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}


class Precision(NamedTuple):
    dtype: torch.dtype
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    eps: float | None = None  # where it is not the dtype's


PRECISIONS = {
    "ieee": Precision(torch.float32, lambda: float32_precision("ieee")),
    "tf32": Precision(torch.float32, lambda: float32_precision("tf32"), TF32_EPS),
    "fp16": Precision(torch.float16),
    "bf16": Precision(torch.bfloat16),
}
SHAPES = [(3, 63, 5), (17, 50, 100)]  # B, T, H
MORE_SHAPES = [(1, 1, 1), (17, 50, 16), (33, 2, 48), (5, 100, 320)]
BENCHMARKED = [320, 512, 768, 1024]  # H


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    torch.manual_seed(1)
    sizes = [2**n for n in range(9, 25)] * 4
    blocks = [torch.full((size,), float("nan"), device="cuda") for size in sizes]
    del blocks
    yield
    torch.cuda.synchronize()  # what fails late fails in its own test


def _pair(cell: str, H: int, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, nn.Module]:
    name, more = CELLS[cell]
    kwargs = {"device": "cuda", "dtype": dtype, **more, **options}
    theirs = getattr(nn, name)(D, H, **kwargs)
    ours = getattr(kernels, name)(D, H, backend="triton", **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def _batch(B: int, T: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [T, B, D] and lengths [B], 1 and T among them."""
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0], lengths[-1] = 1, T
    return torch.randn(T, B, D).to("cuda", dtype), lengths


def _compare(
    cell: str, B: int, T: int, H: int, precision: str, initial: bool = True, **options: Any
) -> None:
    dtype, around, eps = PRECISIONS[precision]
    if H == 1 and precision == "ieee":  # no larger value hides the 1e-7 by which tanh may be off
        eps = 2.0**-20
    ours, theirs = _pair(cell, H, dtype, **options)
    x, lengths = _batch(B, T, dtype)
    states = initial_states(theirs, B) if initial else ()
    with around():
        assert_matches_torch(ours, theirs, x, lengths, states, eps=eps)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: str, shape: tuple[int, int, int], precision: str) -> None:
    _compare(cell, *shape, precision, bidirectional=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", MORE_SHAPES, ids=str)
def test_awkward_shapes(shape: tuple[int, int, int], precision: str) -> None:
    _compare("lstm", *shape, precision, bidirectional=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("H", BENCHMARKED)
def test_shapes_of_the_benchmark(H: int, precision: str) -> None:
    _compare("lstm", 32, 60, H, precision, bidirectional=True)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("cell", CELLS)
def test_inference_is_as_accurate_as_training(cell: str, precision: str) -> None:
    """Its code is another: it keeps nothing for a backward pass."""
    dtype, around, eps = PRECISIONS[precision]
    ours, theirs = _pair(cell, 100, dtype, bidirectional=True)
    x, lengths = _batch(17, 50, dtype)

    def named(y: Tensor, final: Any) -> Results:
        states = final if isinstance(final, tuple) else (final,)
        return {"y": y.detach(), **{f"final{n}": state.detach() for n, state in enumerate(states)}}

    with around():
        trained = named(*ours(x, None, lengths))
        with torch.inference_mode():
            got = named(*ours(x, None, lengths))
    exact = named(*packed_call(theirs.double(), x.double(), None, lengths))
    assert_as_accurate(got, exact, errors(trained, exact), eps=eps)


OPTIONS: list[dict[str, Any]] = [
    {"bidirectional": False},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True},
    {"bidirectional": True, "initial": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_options(cell: str, options: dict[str, Any]) -> None:
    _compare(cell, 17, 50, 100, "ieee", **options)


def test_projection() -> None:
    _compare("lstm", 5, 12, 48, "ieee", proj_size=20, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("cell", CELLS)
def test_the_torch_backend(cell: str) -> None:
    """cuDNN's, which the messages of the triton backend name as the way out."""
    ours, theirs = _pair(cell, 48, torch.float32, num_layers=2, bidirectional=True)
    ours.backend = "torch"  # type: ignore[assignment]
    x, lengths = _batch(5, 12, torch.float32)
    with float32_precision("ieee"):
        assert_matches_torch(ours, theirs, x, lengths, initial_states(theirs, 5))


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"cifg": True}),
    ("LSTM", {"peephole": True}),
    ("LSTM", {"recurrent_dropout": 0.5}),
    ("LSTM", {"cifg": True, "peephole": True, "recurrent_dropout": 0.5}),
    ("GRU", {"recurrent_dropout": 0.5}),
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_variants(name: str, options: dict[str, Any], precision: str, recompute: bool) -> None:
    """Beside the reference: torch has none of them."""
    dtype, around, eps = PRECISIONS[precision]
    more: dict[str, Any] = {"bidirectional": True, "device": "cuda", "dtype": dtype, **options}
    ours = getattr(kernels, name)(D, 100, backend="triton", recompute=recompute, **more)
    reference = getattr(kernels, name)(D, 100, backend="reference", **more)
    reference.load_state_dict(ours.state_dict())
    x, lengths = _batch(17, 12, dtype)
    initial = initial_states(ours, 17)

    def way(module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(7)  # of the dropout
        y, final = module(x, hx, lengths.to(x.device))
        return y, final

    with around():
        rival = results(reference, way, x, initial)
        got = results(ours, way, x, initial)
    exact = results(copy.deepcopy(reference).double(), way, x, initial)
    assert_as_accurate(got, exact, errors(rival, exact), eps=eps)


def test_weights_that_fit_no_processor() -> None:
    """A launch a step: 16 units x 4 gates x 1100 float32 are more than shared memory."""
    _compare("lstm", 2, 3, 1100, "ieee", bidirectional=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_autocast(cell: str, dtype: torch.dtype) -> None:
    ours, theirs = _pair(cell, 100, torch.float32, bidirectional=True)
    x, lengths = _batch(17, 50, torch.float32)
    assert_matches_torch(ours, theirs, x, lengths, initial_states(theirs, 17), autocast=dtype)


def _run(module: nn.Module, x: Tensor, lengths: Tensor | None, *initial: Tensor) -> Results:
    def way(module: nn.Module, x: Tensor, hx: Any) -> Any:
        return module(x, hx, lengths)

    return results(module, way, x, initial)


def _assert_same_bits(got: Results, expected: Results) -> None:
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert not different


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_equal_runs_give_equal_bits(cell: str, dtype: torch.dtype) -> None:
    ours, _ = _pair(cell, 100, dtype, bidirectional=True)
    x, lengths = _batch(33, 70, dtype)
    first = _run(ours, x, lengths)
    for _ in range(3):
        _assert_same_bits(_run(ours, x, lengths), first)


@pytest.mark.parametrize("bits", [-1, 0x7FC1], ids=["all ones", "quiet"])
@pytest.mark.parametrize("where", ["x", "h_0"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_utterance(cell: str, where: str, bits: int) -> None:
    """Also the NaN of all ones, which says "not written yet" to a program that waits."""
    ours, _ = _pair(cell, 48, torch.bfloat16, bidirectional=True)
    T, B, spoilt = 9, 20, 3
    x = torch.randn(T, B, D).to("cuda", torch.bfloat16)
    initial = tuple(state.cuda() for state in initial_states(ours, B))
    clean = _run(ours, x, None, *initial)
    nan = torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16).cuda()
    if where == "x":
        x[4, spoilt] = nan
    else:
        initial[0][:, spoilt] = nan
    got = _run(ours, x, None, *initial)
    others = torch.arange(B, device="cuda") != spoilt
    for name in clean:
        if clean[name].dim() == 3:  # [T, B, *] or [rows, B, H], weights' gradients are 2-d
            assert torch.equal(got[name][:, others], clean[name][:, others]), name
    forward, reverse = got["y"][:, spoilt].isnan().chunk(2, -1)
    begin = 4 if where == "x" else 0
    assert forward[begin:].all()
    assert reverse[: T - begin].all()
    assert not forward[:begin].any()
    assert not reverse[T - begin :].any()


def test_more_frames_than_a_16_bit_number_counts() -> None:
    """cuDNN takes 65,535 at most: torch.nn goes over them in two halves."""
    T = 66_000
    ours, theirs = _pair("lstm", 8, torch.float32)
    x = torch.randn(T, 2, D, device="cuda")

    def at_once(module: nn.Module, x: Tensor, hx: Any) -> Any:
        return module(x, hx)

    def in_halves(module: nn.Module, x: Tensor, hx: Any) -> Any:
        first, state = module(x[: T // 2], hx)
        second, final = module(x[T // 2 :], state)
        return torch.cat([first, second]), final

    with float32_precision("ieee"):
        got = results(ours, at_once, x)
        rival = results(theirs, in_halves, x)
    exact = results(theirs.double(), in_halves, x)
    assert_as_accurate(got, exact, errors(rival, exact))


def _step(module: nn.Module, x: Tensor, lengths: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    """Output and all gradients, with nothing for which the host waits."""
    inputs = [x.requires_grad_(), *module.parameters()]
    cotangent = torch.randn_like(module(x, None, lengths)[0])

    def step() -> tuple[Tensor, ...]:
        y, _ = module(x, None, lengths)
        return (y.detach(), *torch.autograd.grad(y, inputs, cotangent))

    return step


def test_two_streams_wait_for_each_other() -> None:
    """Each launch fills the card: together they would wait for ever if both began."""
    ours, _ = _pair("lstm", 512, torch.bfloat16, bidirectional=True)
    x, lengths = _batch(32, 200, torch.bfloat16)
    step = _step(ours, x, lengths.cuda())
    expected = step()
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    got = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(step())
    torch.cuda.synchronize()
    for one in got:
        assert all(torch.equal(a, b) for a, b in zip(one, expected, strict=True))


@pytest.mark.parametrize("uneven", [False, True])
def test_cuda_graph(uneven: bool) -> None:
    """Forward and backward in one graph, replayed on other input."""
    ours, _ = _pair("lstm", 100, torch.bfloat16, bidirectional=True)
    x, lengths = _batch(17, 50, torch.bfloat16)
    step = _step(ours, x, lengths.cuda() if uneven else None)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and fills the caches of the libraries
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        expected = step()
        for got, wanted in zip(captured, expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.usefixtures("fresh_compiler")
def test_torch_compile_without_a_break(cell: str, uneven: bool) -> None:
    """What compiled code does beside the operator is as accurate as without compiling."""
    ours, theirs = _pair(cell, 48, torch.float32, bidirectional=True)
    x, lengths = _batch(5, 20, torch.float32)
    on_gpu = lengths.cuda() if uneven else None
    compiled = torch.compile(ours, fullgraph=True)

    def by_compiled(module: nn.Module, x: Tensor, hx: Any) -> Any:
        return compiled(x, hx, on_gpu)

    def exactly(module: nn.Module, x: Tensor, hx: Any) -> Any:
        return packed_call(module, x, hx, lengths) if uneven else module(x, hx)

    with float32_precision("ieee"):
        got = results(ours, by_compiled, x)
        eager = _run(ours, x, on_gpu)
        exact = results(theirs.double(), exactly, x)
    assert_as_accurate(got, exact, errors(eager, exact))
