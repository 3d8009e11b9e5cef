"""Beam search: exact where the beam is wide, as good as flashlight's where it is not."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.ctc.align import ctc_align
from kernels.ctc.beam import Hypotheses, Scorer, ctc_beam_search
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.ngram import NGram

UNITS = ["-", "a", "b", "|"]
ARPA = """\\data\\
ngram 1=6
ngram 2=5
ngram 3=3

\\1-grams:
-0.9\ta\t-0.3
-0.5\tb\t-0.1
-0.8\t|\t-0.4
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
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(ARPA)
    return path


def _log_probs(seed: int, T: int, B: int, V: int, sharpness: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(T, B, V, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def _texts(result: Hypotheses, b: int = 0) -> list[tuple[int, ...]]:
    return [
        tuple(tokens[:length].tolist())
        for tokens, length in zip(result.tokens[b], result.lengths[b], strict=True)
    ]


def _score(scorer: Scorer, text: Sequence[int]) -> float:
    state, total = torch.tensor(scorer.start), 0.0
    for unit in text:
        state, score = scorer.step(state, torch.tensor(unit))
        total += score.item()
    return total + scorer.finish(state).item()


def _all_texts(log_probs: Tensor, blank: int, log_add: bool) -> dict[tuple[int, ...], float]:
    """Log-probability of every text of one utterance [T, V], by way of all paths."""
    paths = defaultdict(list)
    T, V = log_probs.shape
    for path in product(range(V), repeat=T):
        changed = [unit for t, unit in enumerate(path) if t == 0 or unit != path[t - 1]]
        score = sum(log_probs[t, unit].item() for t, unit in enumerate(path))
        paths[tuple(unit for unit in changed if unit != blank)].append(score)
    if not log_add:
        return {text: max(scores) for text, scores in paths.items()}
    return {text: math.log(sum(map(math.exp, scores))) for text, scores in paths.items()}


@settings(max_examples=40)
@given(
    seed=seeds,
    T=st.integers(1, 5),
    blank=st.integers(0, 2),
    log_add=st.booleans(),
    scored=st.booleans(),
)
def test_a_wide_beam_finds_the_best_texts(
    seed: int, T: int, blank: int, log_add: bool, scored: bool, arpa: Path
) -> None:
    log_probs = _log_probs(seed, T, 1, 3)
    lm = NGram.from_arpa(arpa, ["a", "b", "|"]) if scored else None
    hotwords = Hotwords([[(blank + 1) % 3] * 2], 3, 1.5) if scored else None
    expected = {}
    for text, score in _all_texts(log_probs[:, 0], blank, log_add).items():
        given_for_text = 0.4 * len(text)
        if lm is not None and hotwords is not None:
            given_for_text += 0.8 * _score(lm, text) + _score(hotwords, text)
        expected[text] = score + given_for_text
    best = sorted(expected, key=expected.__getitem__, reverse=True)[:7]
    result = ctc_beam_search(
        log_probs,
        torch.tensor([T]),
        64,
        blank=blank,
        lm=lm,
        lm_weight=0.8,
        token_score=0.4,
        hotwords=hotwords,
        nbest=7,
        log_add=log_add,
    )
    assert _texts(result)[: len(best)] == best
    scores = result.scores[0].tolist()
    assert scores[: len(best)] == pytest.approx([expected[text] for text in best], abs=1e-5)
    assert all(score == -math.inf for score in scores[len(best) :])
    assert result.lengths[0, len(best) :].sum() == 0


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=5), seed=seeds)
def test_a_batch_is_its_utterances(lengths: list[int], seed: int, arpa: Path) -> None:
    log_probs = _log_probs(seed, max(lengths), len(lengths), 4)
    lm = NGram.from_arpa(arpa, UNITS)
    together = ctc_beam_search(log_probs, torch.tensor(lengths), 5, lm=lm, nbest=2)
    for b, T in enumerate(lengths):
        alone = ctc_beam_search(log_probs[:T, b, None], torch.tensor([T]), 5, lm=lm, nbest=2)
        assert _texts(alone) == _texts(together, b)
        assert alone.frames[0].tolist() == together.frames[b, :, :T].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[b])
        assert (together.tokens[b, :, T:] == 0).all()


def test_an_utterance_without_frames_is_empty() -> None:
    result = ctc_beam_search(_log_probs(0, 3, 2, 4), torch.tensor([0, 3]), 4, nbest=2)
    assert result.scores[0].tolist() == [0.0, -math.inf]
    assert result.lengths[0].tolist() == [0, 0]


@settings(max_examples=30)
@given(seed=seeds, beam_tokens=st.sampled_from([None, 2]))
def test_no_text_comes_twice(seed: int, beam_tokens: int | None) -> None:
    result = ctc_beam_search(
        _log_probs(seed, 12, 1, 4), torch.tensor([12]), 8, nbest=8, beam_tokens=beam_tokens
    )
    assert len(set(_texts(result))) == 8
    assert (result.scores[0].diff() <= 0).all()


@settings(max_examples=30)
@given(seed=seeds)
def test_times_and_scores_are_those_of_the_alignment(seed: int) -> None:
    log_probs, lengths = _log_probs(seed, 15, 2, 5, 2.0), torch.tensor([15, 11])
    result = ctc_beam_search(log_probs, lengths, 400, log_add=False)
    aligned = ctc_align(log_probs, result.tokens[:, 0], lengths, result.lengths[:, 0])
    torch.testing.assert_close(result.ctc_scores[:, 0], aligned.score)
    for b in range(2):
        L = result.lengths[b, 0]
        assert result.frames[b, 0, :L].tolist() == aligned.starts[b, :L].tolist()


@pytest.mark.parametrize("with_lm", [False, True])
@pytest.mark.parametrize("beam", [1, 3, 10, 200])
def test_scores_are_no_worse_than_flashlights(
    beam: int, with_lm: bool, arpa: Path, tmp_path: Path
) -> None:
    from torchaudio.models.decoder import ctc_decoder  # not where only GPU tests run

    # Its silence unit, which it puts before the first frame, is one that is never heard.
    units = [*UNITS, "silence"]
    lm = NGram.from_arpa(arpa, units) if with_lm else None
    # Without this list it numbers the units in an order of its own, and the scores are of others.
    names = tmp_path / "units.txt"
    names.write_text("\n".join([*units, "<unk>"]))
    rival = ctc_decoder(
        lexicon=None,
        tokens=units,
        lm=str(arpa) if with_lm else None,
        lm_dict=str(names) if with_lm else None,
        beam_size=beam,
        beam_threshold=1e9,
        lm_weight=1.3 if with_lm else 0.0,
        blank_token="-",
        sil_token="silence",
        unk_word="<unk>",
        log_add=False,
    )
    log_probs = _log_probs(1, 30, 30, 5, 1.5).float()
    log_probs[:, :, 4] = -1e4
    lengths = torch.full((30,), 30)
    result = ctc_beam_search(log_probs, lengths, beam, lm=lm, lm_weight=1.3, log_add=False)
    ours = result.scores[:, 0]
    theirs = torch.tensor([n[0].score for n in rival(log_probs.transpose(0, 1).contiguous())])
    if beam < 200:  # what is pruned differs, so that one may win where the other loses
        assert ours.mean() >= theirs.mean() - 1e-4
    else:
        torch.testing.assert_close(ours, theirs)


def test_few_units_are_enough_where_the_others_are_unlikely() -> None:
    log_probs = _log_probs(3, 40, 2, 30, 5.0)
    lengths = torch.tensor([40, 33])
    few = ctc_beam_search(log_probs, lengths, 20, beam_tokens=5)
    every = ctc_beam_search(log_probs, lengths, 20)
    assert _texts(few) == _texts(every)


def test_other_dtypes_strides_and_padding() -> None:
    log_probs, lengths = _log_probs(4, 20, 3, 6), torch.tensor([20, 13, 7])
    expected = ctc_beam_search(log_probs.half().float(), lengths, 8)
    padded = log_probs.transpose(0, 1).contiguous().transpose(0, 1).half()
    padded[13:, 1] = torch.nan
    padded[2, 2] = torch.nan
    result = ctc_beam_search(padded, lengths, 8)
    assert torch.equal(result.tokens[:2], expected.tokens[:2])
    assert torch.equal(result.scores[:2], expected.scores[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_probs": torch.zeros(3, 4)}, "log_probs must be 3-D"),
        ({"log_probs": torch.zeros(0, 1, 4)}, r"T and B must be at least 1.* got \[0, 1, 4\]"),
        ({"lengths": torch.tensor([3, 3])}, r"lengths must be \[B\] = \[1\]"),
        ({"lengths": torch.tensor([3.0])}, "lengths must be a tensor of integers"),
        ({"lengths": torch.tensor([4])}, "lengths must be from 0 to T = 3, got"),
        ({"blank": 7}, "blank must be from 0 to V - 1 = 3, got 7"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"nbest": 9}, "nbest must be from 1 to beam = 5, got 9"),
        ({"beam_tokens": 0}, "beam_tokens must be None or at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    arguments = {"log_probs": torch.zeros(3, 1, 4), "lengths": torch.tensor([3]), "beam": 5}
    with pytest.raises(ValueError, match=f"ctc_beam_search: {message}"):
        ctc_beam_search(**(arguments | changes))  # type: ignore[arg-type]


def test_another_backend_is_an_error() -> None:
    message = "ctc_beam_search: backend must be None, 'torch' or 'triton', got 'reference'"
    with pytest.raises(ValueError, match=message):
        ctc_beam_search(torch.zeros(3, 1, 4), torch.tensor([3]), backend="reference")


@pytest.mark.gpu
def test_on_a_gpu_without_waiting_for_it(arpa: Path) -> None:
    log_probs, lengths = _log_probs(5, 40, 3, 4).float(), torch.tensor([40, 33, 0])
    lm, hotwords = NGram.from_arpa(arpa, UNITS), Hotwords([[1, 2], [2, 2, 1]], 4, 1.0)
    expected = ctc_beam_search(log_probs, lengths, 8, lm=lm, hotwords=hotwords, nbest=3)
    on_gpu = {"lm": lm.to("cuda"), "hotwords": hotwords.to("cuda"), "nbest": 3}
    case = log_probs.cuda(), lengths.cuda(), 8
    ctc_beam_search(*case, **on_gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a synchronisation would raise here
        result = ctc_beam_search(*case, **on_gpu)
    graph.replay()
    assert result.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(result.scores.cpu(), expected.scores)
