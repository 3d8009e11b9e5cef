"""Awkward shapes in each dtype: at most twice the error of torch's own loss, against float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ctc import ctc_loss, loss_torch, loss_triton
from kernels.ctc.checks import Labels
from kernels.testing import Results, assert_as_accurate, errors

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of log2(0)


@dataclass(frozen=True)
class Case:
    frames: list[int]
    lengths: list[int]
    V: int
    blank: int = 0
    dtype: torch.dtype = torch.float32
    batch_first: bool = False
    scale: float = 1.0

    def logits(self) -> Tensor:
        T, B = max(self.frames), len(self.frames)
        generator = torch.Generator().manual_seed(5)
        logits = (self.scale * torch.randn(B, T, self.V, generator=generator)).to(self.dtype)
        return logits.transpose(0, 1) if self.batch_first else logits.transpose(0, 1).contiguous()

    def targets(self) -> Tensor:
        generator = torch.Generator().manual_seed(6)
        shape = (len(self.frames), max(self.lengths))
        targets = torch.randint(0, self.V - 1, shape, generator=generator)
        return targets + (targets >= self.blank)


CASES = {
    "one frame": Case([1, 1, 1], [1, 0, 1], 2),
    "no label": Case([9, 1], [0, 0], 4),
    "all repeats": Case([15, 13], [8, 7], 2),
    "target as long as the input": Case([30], [30], 200),
    "target longer than the input": Case([4, 30], [12, 12], 30),
    "large vocabulary": Case([3, 2], [2, 1], 5000),
    "last symbol is the blank": Case([30, 25, 28], [12, 10, 3], 9, blank=8),
    "blank amid": Case([12], [5], 9, blank=4),
    "sharp": Case([60, 47], [10, 8], 12, scale=20.0),
    "float16": Case([30, 25, 28], [12, 10, 3], 9, 4, torch.float16),
    "bfloat16 batch first": Case([30, 25, 28], [12, 10, 3], 9, 4, torch.bfloat16, True),
    "batch first": Case([30, 25, 28], [12, 10, 3], 9, batch_first=True),
    "wider than a block": Case([70], [66], 90),
}


def _ours(case: Case, backend: str, dtype: torch.dtype) -> Results:
    logits = case.logits().to(dtype).requires_grad_()
    lengths = torch.tensor(case.frames), torch.tensor(case.lengths)
    losses = ctc_loss(logits, case.targets(), *lengths, case.blank, "none", True, backend=backend)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert gradient.dtype == dtype
    if case.batch_first and backend == "triton":
        assert gradient.transpose(0, 1).is_contiguous()  # as the logits are
    return {"losses": losses.detach(), "gradient": gradient}


def _torch(case: Case, dtype: torch.dtype) -> Results:
    """ATen's, computed in `dtype`, its gradient rounded to the logits' dtype."""
    logits = case.logits().to(dtype).requires_grad_()
    lengths = torch.tensor(case.frames), torch.tensor(case.lengths)
    losses = F.ctc_loss(logits.log_softmax(-1), case.targets(), *lengths, case.blank, "none", True)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return {"losses": losses.detach(), "gradient": gradient.to(case.dtype)}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_as_accurate_as_torch(name: str, backend: str) -> None:
    case = CASES[name]
    exact = _ours(case, "reference", torch.float64)
    rival = errors(_torch(case, torch.float32), exact)
    assert_as_accurate(_ours(case, backend, case.dtype), exact, rival)


def test_error_does_not_grow_with_time() -> None:
    """Scores of -2000 nats: eight times as exact as ATen's, which does not rescale."""
    case = Case([150], [30], 40, scale=8.0)
    exact = _ours(case, "torch", torch.float64)
    ours = errors(_ours(case, "triton", torch.float32), exact)
    theirs = errors(_torch(case, torch.float32), exact)
    assert ours["gradient"] < theirs["gradient"] / 8


@pytest.mark.slow
def test_more_than_1023_labels() -> None:
    """The recursion alone: two programs of 2048 lanes."""
    T, L, V = 1100, 1030, 4
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(T, 1, V, generator=generator)
    targets = (torch.arange(L) % 3 + 1).unsqueeze(0)
    arguments = (targets, [T], [L], 0, "sum")
    loss = ctc_loss(logits, *arguments, backend="triton")
    exact = ctc_loss(logits.double(), *arguments)
    torch.testing.assert_close(loss, exact.float())


@pytest.mark.slow
def test_gradient_of_more_than_1023_labels() -> None:
    case = Case([1040], [1030], 300)
    exact = _ours(case, "torch", torch.float64)
    rival = errors(_torch(case, torch.float32), exact)
    assert_as_accurate(_ours(case, "triton", torch.float32), exact, rival)


def test_values_that_no_host_has_seen() -> None:
    """Wrong lengths and labels on a device: NaN for their utterance, no memory out of bounds."""
    B, T, V = 8, 6, 4
    logits = torch.randn(T, B, V)
    targets = torch.tensor([[1, 2, 3]]).repeat(B, 1)
    targets[1, 1], targets[2, 0], targets[3, 2] = 0, V, -1
    lengths = torch.tensor([3, 3, 3, 3, 4, -1, 3, 3])
    frames = torch.tensor([6, 6, 6, 6, 6, 6, 7, -1])
    labels = Labels(targets, lengths, frames, blank=0, limit=3)
    alphabet = loss_triton.alphabet(labels, T, V)
    losses, residual = loss_triton.occupy(loss_triton.emissions(logits, alphabet), alphabet, True)
    expected = ctc_loss(logits[:, :1], targets[:1], [T], [3], reduction="none")
    torch.testing.assert_close(losses[:1], expected)
    assert losses[1:].isnan().all()
    assert residual is not None
    gradient = loss_triton.gradient(logits, residual, alphabet, torch.ones(B))
    assert gradient[:, 0].any()
    assert not gradient[:, 1:].any()


def test_same_symbols_in_both_backends() -> None:
    targets = torch.tensor([[5, 2, 5, 5, 1], [3, 3, 9, 9, 9], [9, 9, 9, 9, 9]])
    labels = Labels(targets, torch.tensor([5, 2, 0]), torch.tensor([20, 20, 20]), 0, 5)
    for backend in (loss_torch, loss_triton):
        alphabet = backend.alphabet(labels, 20, 30)
        for b, length in enumerate([5, 2, 0]):
            places = alphabet.places[b, :length].long()
            assert alphabet.symbols[b, places].tolist() == targets[b, :length].tolist()
            assert alphabet.symbols[b, 0] == 0
