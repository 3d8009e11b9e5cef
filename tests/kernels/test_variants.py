"""Variants of the cells: CIFG, peepholes and recurrent dropout, on every backend."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kernels
from kernels.backends import reference
from kernels.testing import Results, assert_as_accurate, errors, initial_states, results

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"cifg": True}),
    ("LSTM", {"peephole": True}),
    ("LSTM", {"cifg": True, "peephole": True}),
    ("LSTM", {"recurrent_dropout": 0.5}),
    ("LSTM", {"cifg": True, "peephole": True, "recurrent_dropout": 0.5}),
    ("LSTM", {"cifg": True, "peephole": True, "proj_size": 3}),
    ("GRU", {"recurrent_dropout": 0.5}),
    ("RNN", {"recurrent_dropout": 0.5}),
]
D, H = 4, 5

variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter has the CPU"
)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _run(module: nn.Module, x: Tensor, lengths: Tensor, initial: tuple[Tensor, ...]) -> Results:
    """All results; dropout draws the same mask every time."""

    def way(module: nn.Module, x: Tensor, hx: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(7)
        y, final = module(x, hx, lengths)
        return y, final

    return results(module, way, x, initial)


def _on(module: nn.Module, backend: str, dtype: torch.dtype) -> nn.Module:
    moved = copy.deepcopy(module).to(dtype)
    moved.backend = backend  # type: ignore[assignment]
    return moved


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
@variants
def test_triton_is_as_accurate_as_the_reference(
    name: str, options: dict[str, Any], recompute: bool, dtype: torch.dtype
) -> None:
    module = getattr(kernels, name)(
        D, H, num_layers=2, bidirectional=True, dtype=dtype, recompute=recompute, **options
    )
    x, lengths = torch.randn(6, 3, D).to(dtype), torch.tensor([6, 1, 4])
    initial = initial_states(module, 3)
    exact = _run(_on(module, "reference", torch.float64), x, lengths, initial)
    rival = errors(_run(_on(module, "reference", dtype), x, lengths, initial), exact)
    assert_as_accurate(_run(_on(module, "triton", dtype), x, lengths, initial), exact, rival)


@variants
def test_torch_is_as_accurate_as_the_reference(name: str, options: dict[str, Any]) -> None:
    module = getattr(kernels, name)(D, H, num_layers=2, bidirectional=True, **options)
    x, lengths = torch.randn(9, 20, D), torch.arange(20) % 9 + 1
    initial = initial_states(module, 20)
    exact = _run(_on(module, "reference", torch.float64), x, lengths, initial)
    rival = errors(_run(_on(module, "reference", torch.float32), x, lengths, initial), exact)
    assert_as_accurate(_run(_on(module, "torch", torch.float32), x, lengths, initial), exact, rival)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@variants
def test_gradcheck(name: str, options: dict[str, Any], backend: str) -> None:
    options = {**options, "proj_size": 1} if "proj_size" in options else options
    module = getattr(kernels, name)(
        2, 2, bidirectional=True, backend=backend, dtype=torch.float64, **options
    )
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [parameter for parameter, _ in module.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(7)
        named = dict(zip(names, parameters, strict=True))
        y: Tensor = torch.func.functional_call(module, named, (x, None, torch.tensor([3, 1])))[0]
        return y

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))


def test_cifg_is_an_lstm_whose_forget_gate_has_the_opposite_argument() -> None:
    ours = kernels.LSTM(D, H, bidirectional=True, cifg=True, dtype=torch.float64)
    theirs = nn.LSTM(D, H, bidirectional=True, dtype=torch.float64)
    rows = {name: value.chunk(3) for name, value in ours.state_dict().items()}
    theirs.load_state_dict({name: torch.cat([i, -i, g, o]) for name, (i, g, o) in rows.items()})
    x = torch.randn(6, 3, D, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("cifg", [False, True])
def test_peepholes_by_hand(cifg: bool) -> None:
    """One unit, two steps, from c = 0.5: the equations in numbers."""
    module = kernels.LSTM(1, 1, bias=False, cifg=cifg, peephole=True, dtype=torch.float64)
    gates = "igo" if cifg else "ifgo"
    w = dict(zip(gates, (0.3, -0.4, 0.9) if cifg else (0.3, 0.2, -0.4, 0.9), strict=True))
    u = dict(zip(gates, (0.1, 0.5, 0.4) if cifg else (0.1, -0.2, 0.5, 0.4), strict=True))
    p = {"i": 0.7, "f": -0.6, "o": 1.1}
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.tensor(list(w.values())).unsqueeze(1))
        module.weight_hh_l0.copy_(torch.tensor(list(u.values())).unsqueeze(1))
        peepholes = [p[gate] for gate in gates if gate != "g"]
        module.weight_peephole_l0.copy_(torch.tensor(peepholes))
    h, c, expected = torch.tensor(0.0).double(), torch.tensor(0.5).double(), []
    for x in (1.0, -2.0):
        i = torch.sigmoid(w["i"] * x + u["i"] * h + p["i"] * c)
        f = 1 - i if cifg else torch.sigmoid(w["f"] * x + u["f"] * h + p["f"] * c)
        c = f * c + i * torch.tanh(w["g"] * x + u["g"] * h)
        h = torch.sigmoid(w["o"] * x + u["o"] * h + p["o"] * c) * torch.tanh(c)
        expected.append(h)
    hx = (torch.zeros(1, 1), torch.full((1, 1), 0.5))
    y, _ = module(torch.tensor([[1.0], [-2.0]]).double(), tuple(s.double() for s in hx))
    # Weights were written as float32 literals.
    torch.testing.assert_close(y.squeeze(1), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_recurrent_dropout_is_one_mask_for_all_steps() -> None:
    """The same as an LSTM whose W_hh has lost the columns of the dropped units."""
    ours = kernels.LSTM(D, H, recurrent_dropout=0.5, dtype=torch.float64)
    theirs = nn.LSTM(D, H, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, D, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs(x))
    torch.manual_seed(7)
    mask = 2.0 * (torch.rand(1, H) >= 0.5)
    assert 0 < mask.count_nonzero() < H
    with torch.no_grad():
        theirs.weight_hh_l0 *= mask
    torch.manual_seed(7)
    torch.testing.assert_close(ours.train()(x), theirs(x))


def test_each_layer_direction_and_utterance_has_a_mask_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks: list[Tensor] = []
    layer = reference.layer

    def look(*arguments: Any) -> Any:
        masks.append(arguments[5])
        return layer(*arguments)

    monkeypatch.setattr(reference, "layer", look)
    module = kernels.GRU(
        D, 64, num_layers=2, bidirectional=True, recurrent_dropout=0.25, backend="reference"
    )
    module(torch.randn(4, 3, D))
    drawn = torch.cat(masks).flatten(0, 1)  # [layers * directions * utterances, H]
    assert drawn.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert len(drawn.unique(dim=0)) == 2 * 2 * 3


def test_state_dicts_of_variants() -> None:
    module = kernels.LSTM(D, H, num_layers=2, bidirectional=True, cifg=True, peephole=True)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes["weight_ih_l1_reverse"] == (3 * H, 2 * H)
    assert shapes["bias_hh_l0"] == (3 * H,)
    assert shapes["weight_peephole_l1_reverse"] == (2 * H,)
    again = kernels.LSTM(D, H, num_layers=2, bidirectional=True, cifg=True, peephole=True)
    again.load_state_dict(module.state_dict())
    x = torch.randn(3, 2, D)
    torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)
    assert "cifg=True, peephole=True" in repr(module)


def _weights() -> list[list[Tensor]]:
    return [[torch.zeros(4 * H, D), torch.zeros(4 * H, H)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"peepholes": [torch.zeros(2 * H)]},
            r"lstm: weight_peephole_l0 must be \[3H\] = \[15\], got \[10\]",
        ),
        (
            {"peepholes": []},
            "lstm: peepholes must hold one tensor for each group of weights, 1, got 0",
        ),
        ({"peepholes": torch.zeros(3)}, "lstm: peepholes must be a tuple or list"),
        ({"recurrent_dropout": 1.5}, "lstm: recurrent_dropout must be from 0 to 1, got 1.5"),
        ({"precision": "fp8"}, "lstm: precision must be None, 'ieee' or 'tf32', got 'fp8'"),
        ({"cifg": True}, r"lstm: weight_ih_l0 must be \[3H, D\]"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.lstm(torch.zeros(3, 2, D), _weights(), **options)


def test_no_recurrent_dropout_with_projection() -> None:
    with pytest.raises(ValueError, match="recurrent_dropout must be 0 with proj"):
        kernels.LSTM(D, H, proj_size=2, recurrent_dropout=0.1)
    weights = [[torch.zeros(4 * H, D), torch.zeros(4 * H, 2), torch.zeros(2, H)]]
    with pytest.raises(ValueError, match="recurrent_dropout must be 0 with proj"):
        kernels.lstm(torch.zeros(3, 2, D), weights, recurrent_dropout=0.1)
