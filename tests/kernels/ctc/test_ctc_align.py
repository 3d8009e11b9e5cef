"""Forced alignment: torchaudio's path for one utterance, the same in a batch, and its laws."""

from itertools import product

import pytest
import torch
import torchaudio.functional as AF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.ctc.align import Alignment, _in_range, ctc_align
from kernels.ctc.checks import Labels

BACKENDS = ["torch", "triton"]  # triton is interpreted where there is no GPU
backends = pytest.mark.parametrize("backend", BACKENDS)
seeds = st.integers(0, 2**31 - 1)


def _case(
    seed: int, frames: list[int], tokens: list[int], V: int, blank: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(max(frames), len(frames), V, generator=generator).log_softmax(-1)
    targets = torch.randint(0, V - 1, (len(tokens), max(tokens)), generator=generator)
    targets += targets >= blank
    return log_probs, targets, torch.tensor(frames), torch.tensor(tokens)


def _repeats(targets: Tensor) -> int:
    return int((targets[1:] == targets[:-1]).sum())


def _assert_valid(result: Alignment, case: tuple[Tensor, ...], blank: int = 0) -> None:
    """The path spells the targets, its score is that of its frames, the spans are its runs."""
    log_probs, targets, frames, tokens = case
    for b, (T, L) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True)):
        spelled = targets[b, :L]
        assert (result.path[b, T:] == blank).all()
        assert (result.starts[b, L:] == 0).all()
        assert (result.ends[b, L:] == 0).all()
        if L + _repeats(spelled) > T:
            assert result.score[b] == -torch.inf
            assert (result.path[b] == blank).all()
            assert (result.token_scores[b, :L] == -torch.inf).all()
            continue
        path = result.path[b, :T]
        units, runs = torch.unique_consecutive(path, return_counts=True)
        assert units[units != blank].tolist() == spelled.tolist()
        ends = runs.cumsum(0)
        assert result.starts[b, :L].tolist() == (ends - runs)[units != blank].tolist()
        assert result.ends[b, :L].tolist() == ends[units != blank].tolist()
        scores = log_probs[:T, b].double().gather(1, path[:, None])[:, 0]
        eps = torch.finfo(log_probs.dtype).eps
        assert abs(result.score[b] - scores.sum()) <= T * eps * scores.sum().abs()
        for k in range(L):
            span = scores[result.starts[b, k] : result.ends[b, k]]
            torch.testing.assert_close(result.token_scores[b, k].double(), span.mean())


@backends
@pytest.mark.parametrize(
    ("T", "L", "V", "blank"),
    [(1, 1, 2, 0), (1, 1, 2, 1), (9, 4, 3, 1), (40, 13, 5, 4), (33, 16, 5000, 0)],
)
def test_is_the_path_of_torchaudio(T: int, L: int, V: int, blank: int, backend: str) -> None:
    log_probs, targets, frames, tokens = _case(T * L, [T], [L], V, blank)
    path, scores = AF.forced_align(log_probs.transpose(0, 1), targets, frames, tokens, blank)
    result = ctc_align(log_probs, targets, frames, tokens, blank, backend=backend)
    assert result.path.tolist() == path.tolist()
    torch.testing.assert_close(result.score, scores.sum(1))
    spans = AF.merge_tokens(path[0], scores[0], blank)
    assert result.starts[0].tolist() == [span.start for span in spans]
    assert result.ends[0].tolist() == [span.end for span in spans]
    torch.testing.assert_close(result.token_scores[0], torch.tensor([span.score for span in spans]))


@settings(max_examples=100)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=5),
    V=st.integers(2, 4),
    seed=seeds,
    data=st.data(),
)
def test_a_batch_is_its_utterances(
    lengths: list[tuple[int, int]], V: int, seed: int, data: st.DataObject
) -> None:
    blank = data.draw(st.integers(0, V - 1))
    case = _case(seed, [T for T, _ in lengths], [L for _, L in lengths], V, blank)
    log_probs, targets, frames, tokens = case
    result = ctc_align(*case, blank)
    _assert_valid(result, case, blank)
    for b, (T, L) in enumerate(lengths):
        alone = ctc_align(
            log_probs[:T, b, None], targets[b, None, :L], frames[b, None], tokens[b, None], blank
        )
        assert alone.path[0].tolist() == result.path[b, :T].tolist()
        assert alone.score[0] == result.score[b]
        assert alone.starts[0].tolist() == result.starts[b, :L].tolist()


@settings(max_examples=50)
@given(T=st.integers(1, 5), L=st.integers(0, 3), seed=seeds)
def test_no_path_is_likelier(T: int, L: int, seed: int) -> None:
    log_probs, targets, frames, tokens = _case(seed, [T], [L], 3)
    best = -torch.inf
    for path in product(range(3), repeat=T):
        units = torch.tensor(path).unique_consecutive()
        if units[units != 0].tolist() == targets[0].tolist():
            best = max(best, sum(log_probs[t, 0, unit].item() for t, unit in enumerate(path)))
    score = ctc_align(log_probs, targets, frames, tokens).score.item()
    assert score == pytest.approx(best)


@pytest.mark.parametrize(
    ("frames", "tokens", "V", "blank"),
    [
        ([1], [1], 2, 0),
        ([1, 1], [0, 1], 2, 1),
        ([0, 3, 5], [0, 4, 2], 3, 2),
        ([3, 6], [2, 0], 5000, 17),
        ([6, 9, 4], [3, 4, 2], 2, 1),  # nothing but repeats
        ([1100], [1030], 40, 0),  # more labels than a block of 1024
    ],
)
def test_triton_is_torch(frames: list[int], tokens: list[int], V: int, blank: int) -> None:
    case = _case(len(frames), frames, tokens, V, blank)
    ours = ctc_align(*case, blank, backend="triton")
    reference = ctc_align(*case, blank, backend="torch")
    for name, one, other in zip(Alignment._fields, ours, reference, strict=True):
        assert torch.equal(one, other), name


@backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, backend: str) -> None:
    log_probs, *rest = _case(3, [7, 5], [3, 2], 4)
    log_probs = log_probs.to(dtype)
    wide = log_probs.to(torch.promote_types(dtype, torch.float32))
    result = ctc_align(log_probs, *rest, backend=backend)
    assert torch.equal(result.path, ctc_align(wide, *rest, backend="torch").path)
    assert result.score.dtype == wide.dtype


@backends
def test_strides_padding_and_nan(backend: str) -> None:
    case = _case(5, [7, 4, 6], [3, 2, 2], 4)
    log_probs, targets, frames, tokens = case
    expected = ctc_align(*case, backend=backend)
    batch_first = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    dirty = batch_first.clone()
    dirty[4:, 1] = torch.nan
    dirty[2, 2] = torch.nan
    padding = targets.clone()
    padding[1, 2:] = -99
    result = ctc_align(dirty, padding, frames, tokens, backend=backend)
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one[:2], other[:2])
    assert result.score[2].isnan()


@backends
def test_equal_scores_stay_where_they_are(backend: str) -> None:
    log_probs = torch.zeros(6, 1, 3)
    result = ctc_align(
        log_probs, torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]), backend=backend
    )
    assert result.path.tolist() == [[1, 2, 2, 2, 2, 2]]


def test_packed_targets() -> None:
    log_probs, targets, frames, tokens = _case(6, [7, 5, 4], [3, 0, 2], 4)
    packed = torch.cat([row[:n] for row, n in zip(targets, tokens, strict=True)])
    one = ctc_align(log_probs, packed, frames, tokens)
    other = ctc_align(log_probs, targets, frames, tokens)
    assert torch.equal(one.path, other.path)


_GOOD = _case(7, [5, 4], [2, 2], 4)


@pytest.mark.parametrize(
    ("place", "bad", "message"),
    [
        (0, torch.zeros(5, 2, 4, dtype=torch.int64), "log_probs must be a floating-point"),
        (0, torch.zeros(5, 4), "log_probs must be 3-D"),
        (0, torch.zeros(0, 2, 4), "T, B and V must be at least 1"),
        (1, torch.zeros(2, 2), "targets must be a tensor of integers"),
        (1, torch.ones(3, 2, dtype=torch.int64), r"\[B, L\] with B = 2"),
        (1, torch.ones(3, dtype=torch.int64), "sum.target_lengths. = 4 labels, got 3"),
        (1, torch.full((2, 2), 4), "targets must be from 0 to V - 1 = 3 .* got 4"),
        (1, torch.zeros(2, 2, dtype=torch.int64), "not blank = 0"),
        (2, torch.tensor([5, 6]), "input_lengths must be from 0 to 5, T, got .* = 6"),
        (2, torch.tensor([5]), r"input_lengths must be \[B\] = \[2\]"),
        (3, torch.tensor([3, 2]), "target_lengths must be from 0 to 2, .* = 3"),
        (3, torch.tensor([-1, 2]), "target_lengths must be from 0 to 2, .* = -1"),
    ],
)
def test_bad_arguments_are_named(place: int, bad: Tensor, message: str) -> None:
    arguments = list(_GOOD)
    arguments[place] = bad
    with pytest.raises(ValueError, match=f"^ctc_align: .*{message}"):
        ctc_align(*arguments)


def test_bad_blank_and_backend_are_named() -> None:
    with pytest.raises(ValueError, match="blank must be from 0 to V - 1 = 3, got 4"):
        ctc_align(*_GOOD, blank=4)
    for name in ("cuda", "reference"):
        message = f"ctc_align: backend must be None, 'torch' or 'triton', got '{name}'"
        with pytest.raises(ValueError, match=message):
            ctc_align(*_GOOD, backend=name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("targets", [[1, 4], [1, 2]]),
        ("targets", [[-1, 3], [1, 2]]),
        ("targets", [[1, 0], [1, 2]]),
        ("lengths", [3, 1]),
        ("lengths", [-1, 1]),
        ("frames", [6, 5]),
        ("frames", [-1, 5]),
    ],
)
def test_what_the_host_does_not_see_is_brought_into_range(
    field: str, value: list[list[int]] | list[int]
) -> None:
    T, V = 5, 4
    past_its_end = torch.tensor([[1, 2], [3, 99]])
    good = Labels(past_its_end, torch.tensor([2, 1]), torch.tensor([5, 4]), blank=0, limit=2)
    labels, wrong = _in_range(good, T, V)
    assert wrong.tolist() == [False, False]
    assert labels.targets.tolist() == [[1, 2], [3, 0]]
    labels, wrong = _in_range(good._replace(**{field: torch.tensor(value)}), T, V)
    assert wrong.tolist() == [True, False]
    for tensor, most in ((labels.targets, V - 1), (labels.lengths, 2), (labels.frames, T)):
        assert ((tensor >= 0) & (tensor <= most)).all()


@pytest.mark.gpu
def test_on_a_gpu_without_waiting_for_it() -> None:
    case = [tensor.cuda() for tensor in _case(8, [90, 60, 75], [40, 7, 0], 50)]
    expected = ctc_align(*case, backend="torch")
    ctc_align(*case)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a synchronisation would raise here
        result = ctc_align(*case)
    for tensor in result:
        tensor.fill_(-7)
    graph.replay()
    for name, one, other in zip(Alignment._fields, result, expected, strict=True):
        assert torch.equal(one, other), name


def test_triton_says_how_many_labels_it_takes() -> None:
    log_probs = torch.zeros(1, 1, 3)
    targets = torch.ones(1, 2**15, dtype=torch.int64)
    lengths = torch.tensor([1]), torch.tensor([1])
    with pytest.raises(ValueError, match="up to 32767 labels an utterance, got 32768; use backend"):
        ctc_align(log_probs, targets, *lengths, backend="triton")
    assert ctc_align(log_probs, targets, *lengths).path.tolist() == [[1]]
