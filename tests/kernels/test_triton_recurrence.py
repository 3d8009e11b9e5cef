"""The Triton kernels under the interpreter: stepped, program by program, on awkward shapes."""

from typing import Any

import pytest
import torch
from torch import nn

import kernels
from kernels.backends.triton.launch import _Watch
from kernels.backends.triton.ops import recurrence
from kernels.cells import GATES, LSTMS, Cell
from kernels.testing import assert_matches_torch, initial_states

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter has the CPU")

CELLS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]
# B, T, H
SHAPES = [(1, 1, 1), (1, 63, 5), (3, 2, 48), (3, 5, 100), (17, 1, 5), (17, 2, 48)]
D = 7

cells = pytest.mark.parametrize(("name", "options"), CELLS, ids=str)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


def _compare(
    name: str, B: int, T: int, H: int, dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0], lengths[-1] = 1, T
    recompute = options.pop("recompute", False)
    theirs = getattr(nn, name)(D, H, dtype=dtype, **options)
    ours = getattr(kernels, name)(
        D, H, backend="triton", recompute=recompute, dtype=dtype, **options
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, D).to(dtype)
    assert_matches_torch(ours, theirs, x, lengths, initial_states(theirs, B))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@cells
def test_shapes(name: str, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    _compare(name, *shape, bidirectional=True, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@cells
def test_dtypes(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    _compare(name, 3, 5, 6, dtype, bidirectional=True, **options)


@cells
def test_layers_directions_and_bias(name: str, options: dict[str, Any]) -> None:
    _compare(name, 3, 4, 6, num_layers=2, bias=False, **options)
    _compare(name, 3, 4, 6, num_layers=2, bidirectional=True, **options)


@cells
def test_gates_computed_again_give_the_same(name: str, options: dict[str, Any]) -> None:
    options = {"bidirectional": True, "recompute": True, **options}
    _compare(name, 3, 5, 6, **options)
    _compare(name, 3, 5, 6, torch.bfloat16, **options)
    _compare(name, 3, 5, 6, bias=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_projection(recompute: bool, dtype: torch.dtype) -> None:
    options = {"proj_size": 2, "num_layers": 2, "bidirectional": True, "recompute": recompute}
    _compare("LSTM", 3, 5, 6, dtype, **options)


def test_recompute_keeps_no_gates() -> None:
    x = torch.randn(4, 2, D)
    for recompute, kept in ((False, True), (True, False)):
        lstm = kernels.LSTM(D, 5, backend="triton", recompute=recompute)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            lstm(x)
        assert (4 * 2 * 4 * 5 in sizes) is kept


@cells
def test_nan_stays_in_its_utterance_and_ends(name: str, options: dict[str, Any]) -> None:
    module = getattr(kernels, name)(D, 5, bidirectional=True, backend="triton", **options)
    x, lengths = torch.randn(6, 3, D), torch.tensor([6, 2, 5])
    clean = module(x, None, lengths)[0]
    x[1, 2] = float("nan")
    x[3:, 1] = float("nan")  # padding
    # All bits one: the pattern that the programs take for "not yet written".
    x[0, 2] = torch.full((D,), -1, dtype=torch.int32).view(torch.float32)
    y = module(x, None, lengths)[0]
    torch.testing.assert_close(y[:, :2], clean[:, :2], rtol=0, atol=0)
    assert y[:5, 2, :5].isnan().all()  # forwards, from frame 0 on
    assert y[:2, 2, 5:].isnan().all()  # backwards, from frame 1 on
    assert not (y.view(torch.int32) == -1).any()


def test_same_bits_every_time() -> None:
    module = kernels.LSTM(D, 5, bidirectional=True, backend="triton")
    x = torch.randn(6, 3, D, requires_grad=True)

    def run() -> list[torch.Tensor]:
        y = module(x, None, torch.tensor([6, 2, 5]))[0]
        return [y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_the_watch_outlives_inference_mode() -> None:
    """It is made in the first call on a device, which may be in inference mode or not."""
    with torch.inference_mode():
        watch = _Watch(torch.device("cpu"))
    watch.lost += 1
    with pytest.raises(RuntimeError, match="waited in vain"):
        watch.check()
    watch.check()


def test_no_double_backward() -> None:
    module = kernels.LSTM(D, 5, backend="triton")
    x = torch.randn(6, 3, D, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="use backend='reference'"):
        dx.sum().backward()


@cells
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_without_graph_break(name: str, options: dict[str, Any]) -> None:
    module = getattr(kernels, name)(D, 5, num_layers=2, backend="triton", **options)
    x, lengths = torch.randn(6, 3, D), torch.tensor([6, 2, 5])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        _flat(compiled(x, None, lengths)), _flat(module(x, None, lengths)), strict=True
    ):
        torch.testing.assert_close(got, expected)


def _flat(result: Any) -> list[torch.Tensor]:
    y, final = result
    return [y, *(final if isinstance(final, tuple) else (final,))]


@pytest.mark.parametrize("cell", ["lstm", "cifg", "gru", "rnn_tanh"])
@pytest.mark.parametrize("save", ["gates", "state"])
def test_operators_are_what_torch_expects(cell: Cell, save: str) -> None:
    G, lstm = GATES[cell], cell in LSTMS
    T, B, H, N = 3, 2, 4, 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=True)

    weights = (draw(N * G * H, D), draw(N, G * H, H), draw(N * G * H))
    bias_hn = draw(N, H) if cell == "gru" else None
    first = draw(N, B, G * H) if lstm else None
    peephole = draw(N, G - 1, H) if cell == "cifg" else None
    states = (draw(N, B, H), draw(N, B, H) if lstm else None)
    mask = draw(N, B, H).detach() if cell == "cifg" else None
    arguments = (draw(T, B, D), *weights, bias_hn, first, peephole, *states, mask)
    torch.library.opcheck(
        recurrence,
        (*arguments, torch.tensor([3, 1]), cell, save, None),
        test_utils=_OPCHECKS,
        atol=1e-5,
        rtol=1e-5,
    )


_OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
