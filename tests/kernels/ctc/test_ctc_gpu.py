"""The loss compiled on a GPU: as accurate as torch's there, the same bits twice, no waiting."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.ctc import ctc_loss, linear, linear_ctc_loss
from kernels.testing import Results, assert_as_accurate, errors

pytestmark = pytest.mark.gpu
SHAPES = [
    (400, 8, 32, 60),
    (400, 8, 5000, 60),
    (30, 3, 2, 15),
    (700, 2, 90, 300),
    (1200, 2, 9, 1100),
]


def _case(T: int, B: int, V: int, L: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(T, B, V, generator=generator)
    targets = torch.arange(L).add(torch.arange(B)[:, None]) % (V - 1) + 1
    frames = torch.linspace(T, (T + 1) // 2, B).round().long()
    lengths = torch.linspace(L, (L + 1) // 2, B).round().long()
    return logits.cuda(), (targets.cuda(), frames.cuda(), lengths.cuda())


def _results(losses: Tensor, logits: Tensor) -> Results:
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    return {"losses": losses.detach(), "gradient": gradient.to(logits.dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_torch(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    logits, labels = _case(*shape)
    leaf = logits.to(dtype).requires_grad_()
    wide = leaf.detach().float().requires_grad_()
    double = wide.detach().double().requires_grad_()
    native = F.ctc_loss(wide.log_softmax(-1), *labels, 0, "none", True)
    exact = _results(ctc_loss(double, *labels, 0, "none", True, backend="torch"), double)
    rival = _results(native, wide)
    rival["gradient"] = rival["gradient"].to(dtype)
    ours = _results(ctc_loss(leaf, *labels, 0, "none", True, backend="triton"), leaf)
    assert_as_accurate(ours, exact, errors(rival, exact))
    again = _results(ctc_loss(leaf, *labels, 0, "none", True, backend="triton"), leaf)
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    with torch.no_grad():  # other code: nothing is kept for a gradient
        alone = ctc_loss(leaf, *labels, 0, "none", True, backend="triton")
    assert_as_accurate({**ours, "losses": alone}, exact, errors(rival, exact))


@pytest.mark.usefixtures("fresh_compiler")
def test_under_a_compiler() -> None:
    logits, labels = _case(50, 3, 200, 12)
    leaf = logits.requires_grad_()
    compiled = torch.compile(lambda x: ctc_loss(x, *labels, 0, "none", True), fullgraph=True)
    expected = _results(ctc_loss(leaf, *labels, 0, "none", True), leaf)
    torch.testing.assert_close(_results(compiled(leaf), leaf), expected)


@pytest.mark.parametrize("frames", [50, 12], ids=["at once", "chunks"])
def test_linear_is_both_after_each_other(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", frames * 3 * 200)
    _, labels = _case(50, 3, 200, 12)
    hidden = torch.randn(50, 3, 24, device="cuda", dtype=torch.float64, requires_grad=True)
    weight = torch.randn(200, 24, device="cuda", dtype=torch.float64, requires_grad=True)
    exact = ctc_loss(F.linear(hidden, weight), *labels)
    gradients = torch.autograd.grad(exact, (hidden, weight))
    single = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    loss = linear_ctc_loss(*single, None, *labels)
    torch.testing.assert_close(loss, exact.float())
    for ours, truth in zip(torch.autograd.grad(loss, single), gradients, strict=True):
        torch.testing.assert_close(ours, truth.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_a_row", [False, True])
def test_a_graph_captures_it_so_the_host_never_waits(in_a_row: bool) -> None:
    logits, (targets, frames, lengths) = _case(60, 3, 20, 8)
    if in_a_row:
        targets = torch.cat([t[:n] for t, n in zip(targets, lengths.tolist(), strict=True)])
    leaf = logits.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        loss = ctc_loss(leaf, targets, frames, lengths)
        return loss, torch.autograd.grad(loss, leaf)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
