"""The loss: what it is, what changes nothing, and torch's documented behaviour."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.ctc import ctc_loss, loss_aten, reference
from kernels.ctc.checks import Labels

backends = pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of log2(0)
few = settings(max_examples=25)


@pytest.fixture(autouse=True, scope="module", params=[0, 64], ids=["needed", "all"])
def _symbols(request: pytest.FixtureRequest) -> Iterator[None]:
    """The torch backend's two ways: the symbols that are needed, or all of a small vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_aten, "SMALL", request.param)
        yield


def said(path: tuple[int, ...], blank: int) -> list[int]:
    """What a path says: without repetitions, then without blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


def enumerated(log_probs: Tensor, target: list[int], blank: int) -> Tensor:
    """-log of the sum over every path there is."""
    T, V = log_probs.shape
    paths = [p for p in itertools.product(range(V), repeat=T) if said(p, blank) == target]
    if not paths:
        return log_probs.new_tensor(torch.inf)
    scores = [log_probs[torch.arange(T), torch.tensor(path)].sum() for path in paths]
    return -torch.stack(scores).logsumexp(0)


def exactly(backend: str) -> torch.dtype:
    return torch.float32 if backend == "triton" else torch.float64


def same_way(backend: str) -> dict[str, float]:
    """Tolerance: torch's way depends on what is finite, triton's order of sums on the shape."""
    return {"rtol": 0.0, "atol": 0.0} if backend == "reference" else {}


def values_and_gradient(logits: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of their sum; without a gradient the losses are the same."""
    leaf = logits.detach().requires_grad_()
    losses = ctc_loss(leaf, *arguments, reduction="none", **options)
    with torch.no_grad():
        alone = ctc_loss(leaf, *arguments, reduction="none", **options)
    torch.testing.assert_close(alone, losses.detach(), equal_nan=True)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


@st.composite
def tiny(draw: st.DrawFn) -> tuple[Tensor, list[int], int]:
    """Logits [T, V] in float64, a target and the blank."""
    T, V = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    blank = draw(st.integers(0, V - 1))
    labels = [v for v in range(V) if v != blank]
    target = draw(st.lists(st.sampled_from(labels), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return 2 * torch.randn(T, V, generator=generator).double(), target, blank


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [T, B, V] in float64, targets [B, L], frames and labels; some cannot be aligned."""
    T, B, V, L = (draw(st.integers(1, most)) for most in (9, 3, 5, 4))
    V += 1
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    frames = torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    lengths = torch.tensor(draw(st.lists(st.integers(0, L), min_size=B, max_size=B)))
    targets = torch.randint(1, V, (B, L), generator=generator)
    return torch.randn(T, B, V, generator=generator).double(), targets, frames, lengths


@backends
@few
@given(case=tiny())
def test_is_the_sum_over_all_paths(case: tuple[Tensor, list[int], int], backend: str) -> None:
    logits, target, blank = case
    logits.requires_grad_()
    leaf = logits.to(exactly(backend))
    targets = torch.tensor(target, dtype=torch.int64)
    loss = ctc_loss(leaf, targets, [len(leaf)], [len(target)], blank, "sum", backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = enumerated(logits.log_softmax(-1), target, blank)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if backend == "triton" else {}
    torch.testing.assert_close(loss, exact.to(loss.dtype), **tolerance)
    if exact == torch.inf:
        assert not gradient.any()
    else:
        (truth,) = torch.autograd.grad(exact, logits)
        torch.testing.assert_close(gradient, truth, **tolerance)


@backends
@few
@given(case=batches(), data=st.data())
def test_padding_and_order_change_nothing(case: Any, data: st.DataObject, backend: str) -> None:
    logits, targets, frames, lengths = case
    logits = logits.to(exactly(backend))
    T, B, V = logits.shape
    losses, gradient = values_and_gradient(logits, targets, frames, lengths, backend=backend)
    order = torch.tensor(data.draw(st.permutations(range(B))))
    # Room for two frames and two labels more, with NaN and impossible labels where nothing is.
    wide = torch.full((T + 2, B, V), torch.nan, dtype=logits.dtype)
    far = torch.full((B, targets.shape[1] + 2), 10**6)
    for to, b in enumerate(order.tolist()):
        wide[: frames[b], to] = logits[: frames[b], b]
        far[to, : lengths[b]] = targets[b, : lengths[b]]
    again, moved = values_and_gradient(wide, far, frames[order], lengths[order], backend=backend)
    tolerance = same_way(backend)
    torch.testing.assert_close(again, losses[order], **tolerance)
    for to, b in enumerate(order.tolist()):
        assert not moved[frames[b] :, to].any()
        torch.testing.assert_close(moved[:T, to], gradient[:, b], **tolerance)


@backends
@few
@given(case=batches())
def test_gradient_sums_to_zero_and_is_zero_where_nothing_fits(case: Any, backend: str) -> None:
    logits = case[0].to(exactly(backend))
    V = logits.shape[2]
    losses, gradient = values_and_gradient(logits, *case[1:], backend=backend)
    eps = torch.finfo(logits.dtype).eps
    assert gradient.sum(-1).abs().max() <= 16 * V * eps
    assert not gradient[:, losses == torch.inf].any()
    assert not losses.isnan().any()


@backends
@pytest.mark.parametrize("row", [False, True], ids=["padded", "in a row"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_documented_behaviour_of_torch(
    reduction: Any, zero_infinity: bool, row: bool, backend: str
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(12, 4, 7, generator=generator).to(exactly(backend))
    targets = torch.tensor([[1, 2, 2, 6], [3, 3, 1, 0], [5, 4, 3, 2], [0, 0, 0, 0]])
    frames, lengths = torch.tensor([12, 9, 3, 12]), torch.tensor([4, 3, 4, 0])
    if row:
        targets = torch.cat([t[:n] for t, n in zip(targets, lengths, strict=True)])
    arguments = (targets, frames, lengths, 0, reduction, zero_infinity)
    ours = logits.clone().requires_grad_()
    theirs = logits.double().requires_grad_()
    loss = ctc_loss(ours, *arguments, backend=backend)
    expected = F.ctc_loss(theirs.log_softmax(-1), *arguments)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if backend == "triton" else {}
    torch.testing.assert_close(loss, expected.to(loss.dtype), **tolerance)
    # Torch's gradient is NaN where the loss is inf, so the comparison is with zero_infinity.
    cotangent = torch.arange(1.0, loss.numel() + 1).reshape(loss.shape)
    loss.backward(cotangent.to(loss))
    zeroed = F.ctc_loss(theirs.log_softmax(-1), *arguments[:-1], True)
    zeroed.backward(cotangent.to(zeroed))
    torch.testing.assert_close(ours.grad, theirs.grad.to(ours.dtype), **tolerance)


@backends
def test_one_utterance_and_plain_numbers(backend: str) -> None:
    logits = torch.randn(6, 5).to(exactly(backend))
    targets = torch.tensor([1, 4], dtype=torch.int32)
    one = ctc_loss(logits, targets, torch.tensor(6), torch.tensor(2), backend=backend)
    batch = ctc_loss(logits.unsqueeze(1), targets.unsqueeze(0), (6,), [2], backend=backend)
    assert one.shape == batch.shape == ()
    assert one == batch


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@backends
def test_labels_may_be_overwritten_before_the_backward_pass(backend: str, reduction: Any) -> None:
    logits = torch.randn(6, 2, 5, dtype=exactly(backend), requires_grad=True)
    labels = torch.tensor([[1, 4, 2], [3, 1, 1]]), torch.tensor([6, 5]), torch.tensor([3, 2])
    kept, changed = (
        ctc_loss(logits, *labels, reduction=reduction, backend=backend) for _ in range(2)
    )
    (expected,) = torch.autograd.grad(kept, logits)
    for tensor in labels:
        tensor.fill_(1)
    (got,) = torch.autograd.grad(changed, logits)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("worst", [torch.nan, -torch.inf])
@backends
def test_nan_and_impossible_symbols_reach_their_own_utterance_only(
    backend: str, worst: float, zero_infinity: bool
) -> None:
    options = {"backend": backend, "zero_infinity": zero_infinity}
    logits = torch.randn(8, 5, 6).to(exactly(backend))
    targets = torch.tensor([[1, 2]]).expand(5, 2)
    frames, lengths = torch.full((5,), 8), torch.full((5,), 2)
    clean, clean_gradient = values_and_gradient(logits, targets, frames, lengths, **options)
    logits[3, 1, 5] = worst
    logits[4, 2, 3:] = -torch.inf  # symbols that the target does not need
    logits[2, 2, 2] = -torch.inf  # one that it does, but not in this frame
    logits[:, 3, 2] = -torch.inf  # in every frame
    losses, gradient = values_and_gradient(logits, targets, frames, lengths, **options)
    nan = worst != worst
    assert losses[1].isnan() == nan
    assert (gradient[:, 1].isnan() == nan).all()
    assert losses[2].isfinite()
    assert losses[3] == (0.0 if zero_infinity else torch.inf)
    assert not gradient[:, 3].any()
    assert gradient[:, 2:].isfinite().all()
    for b in (0, 4):
        tolerance = same_way(backend)
        torch.testing.assert_close(losses[b], clean[b], **tolerance)
        torch.testing.assert_close(gradient[:, b], clean_gradient[:, b], **tolerance)


@backends
def test_finite_logits_of_probability_zero_have_a_gradient(backend: str) -> None:
    logits = torch.zeros(4, 1, 3)
    logits[1, 0] = torch.tensor([2e38, 0.0, -2e38])
    loss, gradient = values_and_gradient(logits, torch.tensor([[1]]), [4], [1], backend=backend)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@few
@given(case=tiny())
def test_gradcheck_of_the_reference(case: tuple[Tensor, list[int], int]) -> None:
    logits, target, blank = case
    labels = Labels(
        *(torch.tensor([target], dtype=torch.int64), torch.tensor([len(target)])),
        *(torch.tensor([len(logits)]), blank, len(target)),
    )
    leaf = logits.unsqueeze(1).requires_grad_()
    if reference.losses(leaf, labels).isfinite().all():
        assert torch.autograd.gradcheck(lambda x: reference.losses(x, labels), leaf)


def test_second_derivatives_are_refused_and_the_reference_has_them() -> None:
    logits = torch.randn(5, 1, 4, requires_grad=True)
    arguments = (torch.tensor([[1, 2]]), [5], [2])
    with torch.no_grad():
        assert not ctc_loss(logits, *arguments).requires_grad
    loss = ctc_loss(logits, *arguments, reduction="sum")
    with pytest.raises(RuntimeError, match=r"backend='reference'|not implemented"):
        _second_derivative(loss, logits)
    loss = ctc_loss(logits, *arguments, backend="reference")
    _second_derivative(loss, logits)


def _second_derivative(loss: Tensor, logits: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    gradient.square().sum().backward()
