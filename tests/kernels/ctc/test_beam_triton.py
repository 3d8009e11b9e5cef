"""The beam search in Triton finds what the one in torch does: interpreted, and on a GPU."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.ctc.beam import Hypotheses, ctc_beam_search
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram

V = 6
UNITS = ["-", "a", "b", "c", "d", "e"]  # the model does not know the last two
UNIT_ARPA = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=3

\\1-grams:
-0.9\ta\t-0.3
-0.5\tb\t-0.1
-0.8\tc\t-0.4
-2.0\t<unk>
-99\t<s>\t-0.2
-0.7\t</s>

\\2-grams:
-0.2\t<s> a\t-0.5
-0.9\ta b\t-0.1
-0.3\tb a\t-0.2
-1.1\ta a
-0.4\tb </s>

\\3-grams:
-0.1\t<s> a b
-0.6\ta b a
-1.3\tb a a

\\end\\
"""
WORDS = ["A", "ABBA", "BA", "HOMOPHONE", "CAB"]
SPELLINGS = [(0, [1]), (1, [1, 2, 2, 1]), (2, [2, 1]), (3, [2, 1]), (4, [3, 1, 2]), (4, [5])]
WORD_ARPA = """\\data\\
ngram 1=8
ngram 2=3

\\1-grams:
-0.9\tA\t-0.3
-1.5\tABBA\t-0.1
-0.8\tBA\t-0.4
-1.1\tHOMOPHONE\t-0.2
-1.9\tCAB
-2.0\t<unk>
-99\t<s>\t-0.2
-0.7\t</s>

\\2-grams:
-0.2\t<s> BA
-0.9\tBA A
-0.4\tCAB </s>

\\end\\
"""


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "units.arpa").write_text(UNIT_ARPA)
    (folder / "words.arpa").write_text(WORD_ARPA)
    lm = NGram.from_arpa(folder / "units.arpa", UNITS)
    words = WordNGram.build(NGram.from_arpa(folder / "words.arpa", WORDS), SPELLINGS, V)
    hotwords = Hotwords([[1, 2], [2, 2, 1]], V, 1.5)
    return {
        "nothing": {"token_score": -0.3},
        "units": {"lm": lm, "lm_weight": 0.8, "token_score": 0.4},
        "hotwords": {"hotwords": hotwords},
        "units, hotwords": {"lm": lm, "lm_weight": 1.3, "hotwords": hotwords},
        "words": {"lm": words, "lm_weight": 0.7, "word_score": 0.5},
        "words, hotwords": {"lm": words, "hotwords": hotwords, "token_score": 0.2},
    }


SCORERS = ["nothing", "units", "hotwords", "units, hotwords", "words", "words, hotwords"]


def _log_probs(seed: int, T: int, B: int, V: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(T, B, V, generator=generator)).log_softmax(-1)


def _assert_same(ours: Hypotheses, theirs: Hypotheses, T: int) -> None:
    """Scores within the rounding of T additions; equal texts wherever scores tell them apart."""
    scores = theirs.scores.nan_to_num(neginf=-1.0)
    error = 8 * T * torch.finfo(torch.float32).eps * scores.abs().max().item()
    for one, other in ((ours.scores, theirs.scores), (ours.ctc_scores, theirs.ctc_scores)):
        there = theirs.scores > -torch.inf
        assert torch.equal(ours.scores > -torch.inf, there)
        torch.testing.assert_close(one[there], other[there], rtol=0.0, atol=error)
    gaps = torch.nn.functional.pad(-theirs.scores.diff(dim=1), (1, 1), value=torch.inf)
    apart = (gaps[:, 1:] > error) & (gaps[:, :-1] > error)
    apart[:, -1] = False  # it may tie with the best of those that were not asked for
    for name in ("tokens", "frames", "words", "lengths"):
        assert torch.equal(getattr(ours, name)[apart], getattr(theirs, name)[apart]), name


@pytest.mark.parametrize("scored", SCORERS)
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31 - 1),
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=2),
    beam=st.sampled_from([1, 3, 8, 20]),
    blank=st.sampled_from([0, 4, 5]),
    beam_tokens=st.sampled_from([None, 2]),
    log_add=st.booleans(),
)
def test_finds_what_torch_finds(
    scored: str,
    scorers: dict[str, dict[str, Any]],
    seed: int,
    lengths: list[int],
    beam: int,
    blank: int,
    beam_tokens: int | None,
    log_add: bool,
) -> None:
    T = max(1, *lengths)
    case = _log_probs(seed, T, len(lengths)), torch.tensor(lengths), beam
    options: dict[str, Any] = {"blank": blank, "beam_tokens": beam_tokens, "log_add": log_add}
    options |= {"nbest": min(beam, 4)} | scorers[scored]
    ours = ctc_beam_search(*case, backend="triton", **options)
    _assert_same(ours, ctc_beam_search(*case, backend="torch", **options), T)


def test_more_extensions_than_a_tile_holds(scorers: dict[str, dict[str, Any]]) -> None:
    case = _log_probs(0, 5, 1, 60), torch.tensor([5]), 40
    ours = ctc_beam_search(*case, nbest=40, backend="triton")
    _assert_same(ours, ctc_beam_search(*case, nbest=40, backend="torch"), 5)


@pytest.mark.parametrize("log_add", [True, False])
def test_impossible_units_and_strides(log_add: bool, scorers: dict[str, dict[str, Any]]) -> None:
    log_probs, lengths = _log_probs(1, 9, 2), torch.tensor([9, 7])
    log_probs[:, :, 3] = -torch.inf
    log_probs[4, 0, :2] = -torch.inf
    log_probs[5, 1] = -torch.inf  # nothing can be said at all
    strided = log_probs.transpose(0, 2).contiguous().transpose(0, 2)
    options: dict[str, Any] = {"nbest": 3, "log_add": log_add} | scorers["units"]
    ours = ctc_beam_search(strided, lengths, 8, backend="triton", **options)
    theirs = ctc_beam_search(log_probs, lengths, 8, backend="torch", **options)
    _assert_same(ours, theirs, 9)
    assert ours.scores[1].tolist() == [-torch.inf] * 3
    assert ours.lengths[1].tolist() == [0] * 3


@pytest.mark.parametrize("log_add", [True, False])
@pytest.mark.parametrize("place", [(2, 2, 0), (2, 2, 4), (6, 2, 1)])
def test_nan_stays_where_it_is(place: tuple[int, ...], log_add: bool) -> None:
    log_probs, lengths = _log_probs(2, 7, 3), torch.tensor([7, 4, 7])
    clean = ctc_beam_search(log_probs, lengths, 8, log_add=log_add, backend="triton")
    log_probs[4:, 1] = torch.nan  # past its end
    log_probs[place] = torch.nan
    dirty = ctc_beam_search(log_probs, lengths, 8, log_add=log_add, backend="triton")
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one[:2], other[:2])
    assert dirty.scores[2].isnan().all()


def test_half_precision_is_computed_in_single() -> None:
    log_probs, lengths = _log_probs(3, 8, 2).half(), torch.tensor([8, 5])
    half = ctc_beam_search(log_probs, lengths, 8, beam_tokens=3, backend="triton")
    single = ctc_beam_search(log_probs.float(), lengths, 8, beam_tokens=3, backend="triton")
    assert all(torch.equal(one, other) for one, other in zip(half, single, strict=True))


class _OwnScorer:
    start = 0

    def step(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        return states, torch.zeros_like(states, dtype=torch.float32)

    def finish(self, states: Tensor) -> Tensor:
        return torch.zeros_like(states, dtype=torch.float32)


def test_what_it_does_not_know_is_named() -> None:
    case = _log_probs(4, 4, 1), torch.tensor([4])
    with pytest.raises(ValueError, match=r"takes an NGram .* got _OwnScorer; use backend=None"):
        ctc_beam_search(*case, lm=_OwnScorer(), backend="triton")
    with pytest.raises(ValueError, match="'triton' has no float64"):
        ctc_beam_search(case[0].double(), case[1], backend="triton")
    with pytest.raises(ValueError, match="takes beams up to 1024, got 1025; use backend=None"):
        ctc_beam_search(*case, 1025, backend="triton")


@pytest.mark.parametrize("units", [V - 1, V + 1])
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("scored", "name"), [("units", "lm"), ("words", "lm"), ("hotwords",) * 2])
def test_scorers_of_other_units_are_named(
    scored: str, name: str, backend: str, units: int, scorers: dict[str, dict[str, Any]]
) -> None:
    case = _log_probs(4, 4, 1, units), torch.tensor([4])
    with pytest.raises(ValueError, match=f"{name} must score V = {units} units, got one of {V}"):
        ctc_beam_search(*case, backend=backend, **scorers[scored])


@pytest.mark.gpu
@pytest.mark.parametrize("log_add", [True, False])
@pytest.mark.parametrize("scored", SCORERS)
@pytest.mark.parametrize("beam", [1, 16, 50, 128])
def test_on_a_gpu_without_waiting_for_it(
    beam: int, scored: str, log_add: bool, scorers: dict[str, dict[str, Any]]
) -> None:
    log_probs, lengths = _log_probs(5, 120, 4), torch.tensor([120, 33, 0, 77])
    options: dict[str, Any] = {"nbest": min(beam, 5), "log_add": log_add} | scorers[scored]
    expected = ctc_beam_search(log_probs, lengths, beam, backend="torch", **options)
    case = log_probs.cuda(), lengths.cuda(), beam
    moved = {
        name: value.to("cuda") if hasattr(value, "to") else value for name, value in options.items()
    }
    ctc_beam_search(*case, **moved)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a synchronisation would raise here
        result = ctc_beam_search(*case, **moved)
    for tensor in result:
        tensor.fill_(-7)
    graph.replay()
    _assert_same(Hypotheses(*(tensor.cpu() for tensor in result)), expected, 120)


@pytest.mark.gpu
def test_many_units_on_a_gpu() -> None:
    case = _log_probs(6, 60, 3, 2000), torch.tensor([60, 41, 55]), 50
    for beam_tokens in (None, 30):
        options: dict[str, Any] = {"nbest": 5, "beam_tokens": beam_tokens}
        expected = ctc_beam_search(*case, backend="torch", **options)
        result = ctc_beam_search(case[0].cuda(), case[1].cuda(), 50, **options)
        _assert_same(Hypotheses(*(tensor.cpu() for tensor in result)), expected, 60)
