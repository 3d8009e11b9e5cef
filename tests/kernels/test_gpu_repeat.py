"""The same launch again and again: same bits, and no hang, whatever else the card does."""

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import kernels
from kernels.testing import assert_as_accurate, errors, results

pytestmark = pytest.mark.gpu

LAUNCHES = 500


class Case(NamedTuple):
    x: Tensor  # [T, B, D]
    lengths: Tensor  # [B], random
    expected: list[Tensor]  # y and all gradients


def _step(module: torch.nn.Module, x: Tensor, lengths: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, _ = module(x, None, lengths)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])]


def _different_bits(got: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Number of elements, counted on the card without waiting for it."""
    pairs = zip(got, expected, strict=True)
    counts = [(a.view(torch.int16) != b.view(torch.int16)).sum() for a, b in pairs]
    return torch.stack(counts).sum()


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside other work"])
def test_launches_give_the_same_bits(busy: bool) -> None:
    torch.manual_seed(0)
    options = {"bidirectional": True, "backend": "triton"}
    module = kernels.LSTM(64, 512, **options, device="cuda", dtype=torch.bfloat16)
    cases = []
    for T in (3, 50, 117, 200):
        x, lengths = torch.randn(T, 32, 64).cuda().bfloat16(), torch.randint(1, T + 1, (32,))
        cases.append(Case(x, lengths.cuda(), _step(module, x, lengths.cuda())))
    other, work = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    order = random.Random(0)
    for _ in range(LAUNCHES):
        case = order.choice(cases)
        if busy:
            with torch.cuda.stream(other):
                torch.mm(work, work)
        different += _different_bits(_step(module, case.x, case.lengths), case.expected)
    assert different.item() == 0


def test_tiny_launch() -> None:
    """Small enough for compute-sanitizer: two programs a direction, forward and backward.

    Beside the reference on the CPU, so that hardly anything else runs on the card.
    """
    torch.manual_seed(0)
    reference = kernels.LSTM(5, 20, bidirectional=True, backend="reference").half()
    ours = kernels.LSTM(5, 20, bidirectional=True, backend="triton").to("cuda", torch.float16)
    ours.load_state_dict(reference.state_dict())
    x, lengths = torch.randn(4, 3, 5).half(), torch.tensor([4, 1, 3])

    def way(module: torch.nn.Module, x: Tensor, hx: Any) -> Any:
        return module(x, hx, lengths)

    got = {name: value.cpu() for name, value in results(ours, way, x.cuda()).items()}
    rival = results(reference, way, x)
    exact = results(reference.double(), way, x)
    assert_as_accurate(got, exact, errors(rival, exact))
