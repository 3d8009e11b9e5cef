"""The recurrence of CPUs on packed rows: operators, torch.compile, and many utterances."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.backends import packed
from kernels.cells import GATES, LSTMS, Cell
from kernels.testing import assert_matches_torch, initial_states

D = 7
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("GRU", {"bias": False}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"cifg": True}),
    ("LSTM", {"peephole": True, "bias": False}),
    ("GRU", {"recurrent_dropout": 0.5}),
]
cells = pytest.mark.parametrize(("name", "options"), CELLS, ids=str)
cells_and_variants = pytest.mark.parametrize(("name", "options"), CELLS + VARIANTS, ids=str)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(2)
    yield
    torch.set_num_threads(1)


def _flat(result: Any) -> list[torch.Tensor]:
    y, final = result
    return [y, *(final if isinstance(final, tuple) else (final,))]


@pytest.mark.parametrize("uneven", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("with_dx", [False, True], ids=["leaf", "inner"])
@cells_and_variants
@pytest.mark.usefixtures("fresh_compiler")
def test_compiles_with_its_gradients(
    name: str, options: dict[str, Any], with_dx: bool, uneven: bool
) -> None:
    module = getattr(kernels, name)(D, 5, num_layers=2, bidirectional=True, **options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 3, D, requires_grad=with_dx)
    lengths = torch.tensor([2, 6, 5]) if uneven else None
    leaves = [*module.parameters(), *([x] if with_dx else [])]
    results = []
    for call in (module, compiled):
        torch.manual_seed(7)  # of the recurrent dropout
        outputs = _flat(call(x, None, lengths))
        loss = torch.stack([(value**2).sum() for value in outputs]).sum()
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("uneven", [False, True], ids=["full", "lengths"])
@cells_and_variants
@pytest.mark.usefixtures("fresh_compiler")
def test_exported_for_any_number_of_frames_and_utterances(
    name: str, options: dict[str, Any], uneven: bool
) -> None:
    module = getattr(kernels, name)(D, 5, num_layers=2, bidirectional=True, **options).eval()
    T, B = torch.export.Dim("T", min=2, max=100), torch.export.Dim("B", min=2, max=100)
    examples = torch.randn(6, 3, D), None, torch.tensor([2, 6, 5]) if uneven else None
    shapes = {0: T, 1: B}, None, {0: B} if uneven else None
    exported = torch.export.export(module, examples, dynamic_shapes=shapes).module()
    others = torch.randn(9, 4, D), None, torch.tensor([2, 9, 1, 3]) if uneven else None
    for got, expected in zip(_flat(exported(*others)), _flat(module(*others)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.usefixtures("fresh_compiler")
def test_projection_compiles() -> None:
    """ATen's operator, not this one."""
    module = kernels.LSTM(D, 5, num_layers=2, bidirectional=True, proj_size=3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(6, 3, D), torch.tensor([2, 6, 5])
    results = _flat(compiled(x, None, lengths)), _flat(module(x, None, lengths))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("threads", [1, 2])
@cells
def test_many_utterances(name: str, options: dict[str, Any], threads: int) -> None:
    """From 16 utterances on the LSTM runs here too; equal lengths stand in the given order."""
    torch.set_num_threads(threads)
    theirs = getattr(torch.nn, name)(D, 12, bidirectional=True, **options)
    ours = getattr(kernels, name)(D, 12, bidirectional=True, backend="torch", **options)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.arange(20) % 9 + 1
    assert_matches_torch(ours, theirs, torch.randn(9, 20, D), lengths, initial_states(theirs, 20))


@pytest.mark.parametrize("uneven", [False, True], ids=["full", "lengths"])
@cells_and_variants
def test_directions_together_as_one_by_one(
    name: str, options: dict[str, Any], uneven: bool
) -> None:
    """Several threads take the steps of both directions together, one takes them in turn."""
    module, definition = (
        getattr(kernels, name)(
            D, 5, num_layers=2, bidirectional=True, backend=backend, dtype=torch.float64, **options
        )
        for backend in ("torch", "reference")
    )
    definition.load_state_dict(module.state_dict())
    x = torch.randn(6, 4, D, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([2, 6, 5, 1]) if uneven else None
    initial = [state.requires_grad_() for state in initial_states(module, 4)]
    states = tuple(initial) if len(initial) > 1 else initial[0]
    results = []
    for layer, threads in ((definition, 1), (module, 1), (module, 2)):
        torch.set_num_threads(threads)
        torch.manual_seed(7)  # of the recurrent dropout
        outputs = _flat(layer(x, states, lengths))
        loss = torch.stack([(value**2).sum() for value in outputs]).sum()
        gradients = torch.autograd.grad(loss, [x, *initial, *layer.parameters()])
        with torch.no_grad():
            torch.manual_seed(7)
            alone = _flat(layer(x, states, lengths))
        results.append([*outputs, *gradients, *alone])
    for expected, one_by_one, together in zip(*results, strict=True):
        torch.testing.assert_close(one_by_one, expected, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(together, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (1,)], ids=["all", "y", "h_n"])
def test_compilers_are_told_the_strides(used: tuple[int, ...]) -> None:
    def run() -> list[tuple[int, ...]]:
        h_0, c_0 = (torch.randn(3, 2, 4).transpose(0, 1).requires_grad_() for _ in range(2))
        weights = [
            torch.randn(*shape).t().requires_grad_() for shape in ((D, 16), (4, 16)) for _ in "fb"
        ]
        weights = [weights[0], weights[2], weights[1], weights[3]]
        x = torch.randn(5, 3, D, requires_grad=True)
        results = packed.recurrence(x, weights, h_0, c_0, None, None, "lstm", True)
        loss = torch.stack([results[number].sum() for number in used]).sum()
        gradients = torch.autograd.grad(loss, [x, h_0, c_0, *weights])
        return [value.stride() for value in (*results, *gradients)]

    real = run()
    with FakeTensorMode():
        assert run() == real


def test_outputs_are_the_callers_to_write_into() -> None:
    module = kernels.GRU(D, 5, bidirectional=True, backend="torch")
    x = torch.randn(6, 3, D)
    expected = torch.autograd.grad(module(x)[0].relu().sum(), list(module.parameters()))
    got = torch.autograd.grad(module(x)[0].relu_().sum(), list(module.parameters()))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("output", ["y", "h_n", "c_n"])
def test_gradient_of_one_output_alone(output: str) -> None:
    theirs = torch.nn.LSTM(D, 5, bidirectional=True, dtype=torch.float64)
    ours = kernels.LSTM(D, 5, bidirectional=True, backend="torch", dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, D, dtype=torch.float64)
    gradients = []
    for module in (theirs, ours):
        y, (h_n, c_n) = module(x)
        value = {"y": y, "h_n": h_n, "c_n": c_n}[output]
        gradients.append(torch.autograd.grad((value**2).sum(), list(module.parameters())))
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_sums_of_many_rows_round_as_little_as_torch() -> None:
    theirs = torch.nn.GRU(D, 5)
    ours = kernels.GRU(D, 5, backend="torch")
    ours.load_state_dict(theirs.state_dict())
    assert_matches_torch(ours, theirs, torch.randn(400, 17, D), torch.full((17,), 400))


@pytest.mark.parametrize("variant", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "cifg", "gru", "rnn_tanh", "rnn_relu"])
def test_operators_are_what_torch_expects(cell: Cell, variant: bool) -> None:
    T, B, H, N, G = 3, 2, 4, 2, GATES[cell]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=True)

    one = [draw(G * H, D), draw(G * H, H), draw(G * H), draw(G * H)]
    if variant and cell in LSTMS:
        one.append(draw((G - 1) * H))  # peepholes
    other = [w.detach().clone().requires_grad_() for w in one]
    states = draw(N, B, H), draw(N, B, H if cell in LSTMS else 0)
    mask = 2.0 * (torch.rand(N, B, H) < 0.5) if variant else None
    arguments = (draw(T, B, D), [*one, *other], *states, torch.tensor([1, 3]), mask, cell, True)
    checks = ("test_schema", "test_autograd_registration")  # fake tensors: the compiled ones above
    torch.library.opcheck(packed.recurrence, arguments, test_utils=checks)


@cells_and_variants
def test_nothing_is_kept_without_gradients(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def look(call: Any, *arguments: Any) -> Any:
        results = call(*arguments)
        kept.append(sum(value.numel() for value in results[3:]))
        return results

    for called in ("recurrence", "compute"):
        monkeypatch.setattr(packed, called, partial(look, getattr(packed, called)))
    module = getattr(kernels, name)(D, 5, dtype=torch.float64, **options)
    x = torch.randn(6, 3, D, dtype=torch.float64)
    module(x)
    with torch.no_grad():
        module(x)
    assert kept[0] > 0
    assert kept[1] == 0


@pytest.mark.parametrize(("name", "options"), [("GRU", {}), *VARIANTS], ids=str)
def test_no_double_backward(name: str, options: dict[str, Any]) -> None:
    module = getattr(kernels, name)(D, 5, backend="torch", **options)
    x = torch.randn(6, 3, D, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="use backend='reference'"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("shortest", "threads", "with_gradients", "expected"),
    [(2, 1, False, True), (9, 1, False, False), (2, 2, False, False), (9, 1, True, True)],
)
def test_an_lstm_is_packed_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    shortest: int,
    threads: int,
    with_gradients: bool,
    expected: bool,
) -> None:
    """Without gradients on one thread and where there is much padding, with them in any case."""
    layer, packed_layers = packed.layer, []

    def spy(*given: Any) -> Any:
        packed_layers.append(given)
        return layer(*given)

    monkeypatch.setattr(packed, "layer", spy)
    torch.set_num_threads(threads)
    lengths = torch.tensor([10] * 8 + [shortest] * 8)
    with torch.set_grad_enabled(with_gradients):
        kernels.LSTM(D, 5, backend="torch")(torch.randn(10, 16, D), lengths=lengths)
    assert bool(packed_layers) == expected
