"""Wrong arguments get one line that names them; every one a ValueError."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import kernels

D, H, B, T = 3, 4, 2, 5


def _weights(rows: int, *, layers: int = 1, inputs: int = D) -> list[list[Tensor]]:
    """One direction, with bias."""
    groups = []
    for layer in range(layers):
        columns = inputs if layer == 0 else H
        shapes = [(rows * H, columns), (rows * H, H), (rows * H,), (rows * H,)]
        groups.append([torch.randn(shape) for shape in shapes])
    return groups


def _lstm(*, at: tuple[int, int] | None = None, new: Any = None, **arguments: Any) -> Any:
    """`kernels.lstm` on good arguments but for those given, and for weights[at], which is `new`."""
    weights = _weights(4)
    if at is not None:
        weights[at[0]][at[1]] = new
    return kernels.lstm(**{"x": torch.randn(T, B, D), "weights": weights, **arguments})


def _integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


CASES: list[tuple[Callable[[], Any], str]] = [
    # weights
    (
        lambda: _lstm(at=(0, 1), new=torch.randn(16, 5)),
        "lstm: weight_hh_l0 must be [4H, H] = [16, 4], got [16, 5]",
    ),
    (
        lambda: _lstm(at=(0, 2), new=torch.randn(15)),
        "lstm: bias_ih_l0 must be [4H] = [16], got [15]",
    ),
    (
        lambda: _lstm(x=torch.randn(T, B, 7)),
        "lstm: input must have D = 3 features, as weight_ih_l0 has columns, got 7",
    ),
    (
        lambda: _lstm(weights=[*_weights(4), *_weights(4)]),
        "lstm: weight_ih_l1 must be [4H, D] = [16, 4], got [16, 3]",
    ),
    (
        lambda: _lstm(weights=[*_weights(4), [torch.randn(16, 8), *_weights(4)[0][1:]]]),
        "lstm: weight_ih_l1 must be [4H, D] = [16, 4], got [16, 8]",
    ),
    (
        lambda: _lstm(weights=[_weights(4)[0], [torch.randn(16, 5)] * 4], bidirectional=True),
        "lstm: weight_ih_l0_reverse must be [4H, D] = [16, 3], got [16, 5]",
    ),
    (
        lambda: _lstm(weights=[*_weights(4), _weights(4, inputs=H)[0][:2]]),
        "lstm: bias_ih_l1 must be there in all layers or in none",
    ),
    (lambda: _lstm(bidirectional=True), "lstm: weights must hold two groups a layer"),
    (lambda: _lstm(weights=[]), "lstm: weights must hold one group a layer, got 0 groups"),
    (lambda: _lstm(weights=[[torch.randn(16, 3)]]), "must have 2 or 3 or 4 or 5 tensors"),
    (lambda: _lstm(weights=_weights(4)[0]), "each group of weights must be a tuple or list"),
    (lambda: _lstm(at=(0, 1), new=None), "each group of weights must hold tensors, got NoneType"),
    (
        lambda: kernels.gru(torch.randn(T, B, D), _weights(4)),
        "gru: weight_ih_l0 must be [3H, D] = [15, 3], got [16, 3]",
    ),
    (
        lambda: kernels.rnn(torch.randn(T, B, D), [_weights(1)[0][:3]]),
        "rnn: each group of weights must have 2 or 4 tensors",
    ),
    (lambda: _lstm(at=(0, 0), new=torch.tensor(1.0)), "lstm: weight matrices must be 2-D, got []"),
    # dtypes and devices
    (
        lambda: _lstm(x=torch.randn(T, B, D, dtype=torch.float64)),
        "lstm: weight_ih_l0 must have the input's dtype torch.float64, got torch.float32",
    ),
    (
        lambda: _lstm(x=torch.zeros(T, B, D, dtype=torch.int64)),
        "lstm: input must be floating point, got torch.int64",
    ),
    (
        lambda: _lstm(x=torch.zeros(T, B, D, device="meta")),
        "lstm: weight_ih_l0 must be on the input's device meta, got cpu",
    ),
    # input
    (lambda: _lstm(x=torch.randn(D)), "lstm: input must be 2-D or 3-D, got 1-D [3]"),
    (lambda: _lstm(x=torch.randn(1, T, B, D)), "lstm: input must be 2-D or 3-D, got 4-D"),
    (lambda: _lstm(x=torch.randn(0, B, D)), "lstm: input must have at least one frame"),
    (lambda: _lstm(x=[[1.0]]), "lstm: input must be a Tensor or PackedSequence, got list"),
    # lengths
    (
        lambda: _lstm(lengths=_integers(5, 0)),
        "lstm: lengths must be from 1 to T = 5, got lengths[1] = 0",
    ),
    (
        lambda: _lstm(lengths=_integers(6, 1)),
        "lstm: lengths must be from 1 to T = 5, got lengths[0] = 6",
    ),
    (lambda: _lstm(lengths=_integers(-1, 5)), "from 1 to T = 5, got lengths[0] = -1"),
    (lambda: _lstm(lengths=_integers(5)), "lstm: lengths must be [B] = [2], got [1]"),
    (lambda: _lstm(lengths=_integers(5, 5).unsqueeze(0)), "must be [B] = [2], got [1, 2]"),
    (
        lambda: _lstm(lengths=torch.tensor([0.5, 1.0])),
        "lstm: lengths must be a tensor of integers, got torch.float32",
    ),
    (lambda: _lstm(lengths=[True, True]), "tensor of integers, got torch.bool"),
    (lambda: _lstm(lengths=[5, None]), "lstm: lengths must be a tensor of integers, got [5, None]"),
    (lambda: _lstm(lengths="55"), "lstm: lengths must be a tensor of integers, got '55'"),
    (lambda: _lstm(lengths=[5, 6]), "from 1 to T = 5, got lengths[1] = 6"),
    (
        lambda: _lstm(x=pack_sequence([torch.randn(T, D)]), lengths=_integers(T)),
        "lstm: lengths must be None: a PackedSequence has its own",
    ),
    (
        lambda: _lstm(x=torch.randn(T, D), lengths=_integers(T)),
        "lstm: lengths must be None for one utterance [T, D]",
    ),
    # initial states
    (lambda: _lstm(hx=torch.zeros(1, B, H)), "lstm: hx must be a tuple or list of tensors"),
    (lambda: _lstm(hx=(torch.zeros(1, B, H),)), "lstm: hx must be (h_0, c_0), got 1 tensors"),
    (lambda: _lstm(hx=(torch.zeros(1, B, H), None)), "lstm: hx must hold tensors, got NoneType"),
    (
        lambda: _lstm(hx=(torch.zeros(1, B, H), torch.zeros(2, B, H))),
        "lstm: c_0 must be [layers * directions, B, size] = [1, 2, 4], got [2, 2, 4]",
    ),
    (
        lambda: _lstm(x=torch.randn(T, D), hx=(torch.zeros(1, B, H), torch.zeros(1, B, H))),
        "lstm: h_0 must be [layers * directions, size] = [1, 4], got [1, 2, 4]",
    ),
    (
        lambda: _lstm(hx=(torch.zeros(1, B, H).half(), torch.zeros(1, B, H))),
        "lstm: h_0 must have the input's dtype torch.float32, got torch.float16",
    ),
    (
        lambda: kernels.gru(torch.randn(T, B, D), _weights(3), torch.zeros(1, B, 9)),
        "gru: h_0 must be [layers * directions, B, size] = [1, 2, 4], got [1, 2, 9]",
    ),
    (
        lambda: _lstm(x=pack_sequence([torch.randn(T, D)]), hx=(torch.zeros(1, B, H),) * 2),
        "lstm: h_0 must be [layers * directions, B, size] = [1, 1, 4], got [1, 2, 4]",
    ),
    # options
    (lambda: _lstm(dropout=1.5), "lstm: dropout must be from 0 to 1, got 1.5"),
    (
        lambda: kernels.rnn(torch.randn(T, B, D), _weights(1), nonlinearity="gelu"),
        "rnn: nonlinearity must be 'tanh' or 'relu', got 'gelu'",
    ),
    (lambda: _lstm(backend="cudnn"), "backend must be None or one of ['triton', "),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_good_arguments_pass() -> None:
    y, (h, c) = _lstm(lengths=_integers(5, 1), hx=(torch.zeros(1, B, H), torch.zeros(1, B, H)))
    assert (y.shape, h.shape, c.shape) == ((T, B, H), (1, B, H), (1, B, H))
    for lengths in ([5, 1], (5, 1), _integers(5, 1).int(), _integers(5, 1).to(torch.uint8)):
        torch.manual_seed(0)
        expected = _lstm(lengths=_integers(5, 1))[0]
        torch.manual_seed(0)
        assert torch.equal(_lstm(lengths=lengths)[0], expected)


def test_module_messages_are_the_functions() -> None:
    with pytest.raises(ValueError, match=r"gru: input must have D = 3 features, .* got 9"):
        kernels.GRU(D, H)(torch.randn(T, B, 9))
