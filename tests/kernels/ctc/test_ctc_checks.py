"""Wrong arguments of the losses get one line that names them; every one a ValueError."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.ctc import ctc_loss, linear_ctc_loss
from kernels.ctc.checks import labels_of

T, B, V, H = 5, 2, 4, 3


def _loss(**changed: Any) -> Any:
    """`ctc_loss` on good arguments but for those given."""
    arguments: dict[str, Any] = {
        "logits": torch.randn(T, B, V),
        "targets": torch.tensor([[1, 2], [3, 1]]),
        "input_lengths": [5, 4],
        "target_lengths": [2, 1],
    }
    return ctc_loss(**(arguments | changed))


def _alone(targets: Any) -> Any:
    return ctc_loss(torch.randn(T, V), targets, [T], [2])


def _linear(**changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "hidden": torch.randn(T, B, H),
        "weight": torch.randn(V, H),
        "bias": torch.randn(V),
        "targets": torch.tensor([[1, 2], [3, 1]]),
        "input_lengths": [5, 4],
        "target_lengths": [2, 1],
    }
    return linear_ctc_loss(**(arguments | changed))


CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: _loss(logits=[[0.0]]), "ctc_loss: logits must be a floating-point tensor, got list"),
    (lambda: _loss(logits=torch.zeros(T, B, V).long()), "tensor, got torch.int64"),
    (lambda: _loss(logits=torch.zeros(V)), "ctc_loss: logits must be 2-D or 3-D, got [4]"),
    (lambda: _loss(logits=torch.zeros(0, B, V)), "T, B and V must be at least 1, got [0, 2, 4]"),
    (lambda: _loss(blank=4), "ctc_loss: blank must be from 0 to V - 1 = 3, got 4"),
    (lambda: _loss(blank=-1), "ctc_loss: blank must be from 0 to V - 1 = 3, got -1"),
    (
        lambda: _loss(reduction="max"),
        "ctc_loss: reduction must be one of ['none', 'mean', 'sum'], got 'max'",
    ),
    (
        lambda: _loss(input_lengths=[6, 4]),
        "ctc_loss: input_lengths must be from 0 to 5, T, got input_lengths[0] = 6",
    ),
    (lambda: _loss(input_lengths=[5, -1]), "got input_lengths[1] = -1"),
    (lambda: _loss(input_lengths=[5]), "ctc_loss: input_lengths must be [B] = [2], got [1]"),
    (
        lambda: _loss(input_lengths=torch.tensor([0.5, 1.0])),
        "ctc_loss: input_lengths must be a tensor of integers, got torch.float32",
    ),
    (
        lambda: _loss(target_lengths=[3, 1]),
        "ctc_loss: target_lengths must be from 0 to 2, the labels in targets, "
        "got target_lengths[0] = 3",
    ),
    (lambda: _loss(targets=[[1, 2]]), "ctc_loss: targets must be a tensor of integers"),
    (
        lambda: _loss(targets=torch.tensor([[1, 2]])),
        "ctc_loss: targets must be [B, L] with B = 2, or 1-D (all of them in a row), got [1, 2]",
    ),
    (
        lambda: _loss(targets=torch.tensor([1, 2, 3, 1])),
        "ctc_loss: 1-D targets must hold sum(target_lengths) = 3 labels, got 4",
    ),
    (
        lambda: _loss(targets=torch.tensor([[1, 2], [4, 1]])),
        "ctc_loss: targets must be from 0 to V - 1 = 3 and not blank = 0, got 4 in utterance 1",
    ),
    (
        lambda: _alone([1, 2]),
        "ctc_loss: targets must be a tensor of integers, got list",
    ),
    (
        lambda: _alone(torch.tensor([[1, 2], [3, 1]])),
        "ctc_loss: targets of one utterance must be [L] or [1, L], got [2, 2]",
    ),
    (lambda: _alone(torch.tensor(1)), "must be [L] or [1, L], got []"),
    (lambda: _loss(blank=2), "and not blank = 2, got 2 in utterance 0"),
    (
        lambda: _loss(logits=torch.randn(T, B, V).double(), backend="triton"),
        "backend 'triton' has no float64; use backend='torch' or 'reference'",
    ),
    (lambda: _loss(backend="cudnn"), "backend must be None or one of"),
    (lambda: _linear(hidden=torch.randn(T, H)), "linear_ctc_loss: hidden must be 3-D, got [5, 3]"),
    (
        lambda: _linear(weight=torch.randn(V, 7)),
        "linear_ctc_loss: weight must be [V, H] = [V, 3], got [4, 7]",
    ),
    (
        lambda: _linear(bias=[0.0] * V),
        "linear_ctc_loss: bias must be a floating-point tensor, got list",
    ),
    (lambda: _linear(bias=torch.randn(3)), "linear_ctc_loss: bias must be [V] = [4], got [3]"),
    (
        lambda: _linear(weight=torch.randn(V, H).double()),
        "linear_ctc_loss: weight must have hidden's dtype torch.float32, got torch.float64",
    ),
    (
        lambda: _linear(bias=torch.zeros(V, device="meta")),
        "linear_ctc_loss: bias must be on hidden's device cpu, got meta",
    ),
    (lambda: _linear(blank=4), "linear_ctc_loss: blank must be from 0 to V - 1 = 3, got 4"),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_message(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_good_arguments_pass() -> None:
    assert _loss().isfinite()
    assert _linear(bias=None).isfinite()
    assert _loss(target_lengths=torch.zeros(B, dtype=torch.int32)).isfinite()
    assert _alone(torch.tensor([1, 2])).isfinite()
    assert _alone(torch.tensor([[1, 2]])).isfinite()
    labels, lengths = torch.tensor([[1, 2], [3, 1]]), torch.tensor([2, 1])
    logits = torch.randn(T, B, V)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        narrow = _loss(logits=logits, targets=labels.to(dtype), target_lengths=lengths.to(dtype))
        assert torch.equal(narrow, _loss(logits=logits))
        in_a_row = _loss(logits=logits, targets=torch.tensor([1, 2, 3], dtype=dtype))
        assert torch.equal(in_a_row, narrow)
    assert _loss(targets=torch.zeros(0, dtype=torch.int64), target_lengths=[0, 0]).isfinite()


def test_a_row_of_targets_that_no_host_has_seen_is_cut_at_the_frames() -> None:
    """Without values there is no longest target, but more labels than frames never fit."""
    device = torch.device("meta")
    scores = torch.empty(T, B, V, device=device)
    lengths = torch.empty(B, dtype=torch.int64, device=device)
    targets = torch.empty(99, dtype=torch.int64, device=device)
    labels = labels_of("op", scores, V, targets, lengths, lengths, 0, asynchronous=True)
    assert labels.targets.shape == (B, T)
    assert labels.limit == 99
