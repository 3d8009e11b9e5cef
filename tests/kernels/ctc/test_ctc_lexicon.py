"""Search for words: exact where the beam is wide, as good as flashlight's lexicon decoder."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchaudio.models.decoder import ctc_decoder

from kernels.ctc.beam import ctc_beam_search
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram

WORDS = ["IN", "INN", "I", "NO", "INTO", "NEW"]  # NEW is not the model's: its <unk>
SPELLINGS = [(0, [1, 2]), (1, [1, 2]), (2, [1]), (3, [2]), (4, [1, 2, 2]), (2, [2, 1]), (5, [2, 2])]
ARPA = """\\data\\
ngram 1=8
ngram 2=4

\\1-grams:
-0.9\tIN\t-0.3
-1.5\tINN\t-0.1
-0.8\tI\t-0.4
-1.1\tNO\t-0.2
-1.9\tINTO\t-0.2
-2.0\t<unk>
-99\t<s>\t-0.2
-0.7\t</s>

\\2-grams:
-0.2\t<s> INN
-0.9\tNO INTO
-0.3\tI NO
-0.4\tINN </s>

\\end\\
"""


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(ARPA)
    return path


def _log_probs(seed: int, T: int, B: int, V: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, B, V, generator=generator, dtype=torch.float64).log_softmax(-1)


def _sentences(units: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every sequence of words that is spelled by `units`."""
    if not units:
        yield ()
    for word, spelling in SPELLINGS:
        if list(units[: len(spelling)]) == spelling:
            for rest in _sentences(units[len(spelling) :]):
                yield (word, *rest)


def _score(model: NGram, words: Sequence[int]) -> float:
    state, total = torch.tensor(model.start), 0.0
    for word in words:
        state, score = model.step(state, torch.tensor(word))
        total += score.item()
    return total + model.finish(state).item()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31 - 1), T=st.integers(1, 5), weight=st.sampled_from([0.0, 1.2]))
def test_a_wide_beam_finds_the_best_sentences(seed: int, T: int, weight: float, arpa: Path) -> None:
    log_probs = _log_probs(seed, T, 1, 3)
    model = NGram.from_arpa(arpa, WORDS)
    paths: dict[tuple[int, ...], float] = {}
    for path in product(range(3), repeat=T):
        changed = [unit for t, unit in enumerate(path) if t == 0 or unit != path[t - 1]]
        text = tuple(unit for unit in changed if unit != 0)
        score = sum(log_probs[t, 0, unit].item() for t, unit in enumerate(path))
        paths[text] = paths.get(text, 0.0) + math.exp(score)
    expected: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for text, probability in paths.items():
        for words in _sentences(text):
            score = math.log(probability) + weight * _score(model, words) - 0.3 * len(words)
            expected[text, words] = score
    best = sorted(expected.values(), reverse=True)[:5]
    result = ctc_beam_search(
        log_probs,
        torch.tensor([T]),
        2000,
        lm=WordNGram.build(model, SPELLINGS, 3),
        lm_weight=weight,
        word_score=-0.3,
        nbest=5,
    )
    assert result.scores[0, : len(best)].tolist() == pytest.approx(best, abs=1e-5)
    found = set()
    for n in range(len(best)):
        length = result.lengths[0, n]
        text = tuple(result.tokens[0, n, :length].tolist())
        words = tuple(word for word in result.words[0, n, :length].tolist() if word >= 0)
        assert expected[text, words] == pytest.approx(result.scores[0, n].item(), abs=1e-5)
        found.add((text, words, tuple(result.words[0, n].tolist())))
    assert len(found) == len(best)


@pytest.mark.parametrize("beam", [5, 20, 500])
def test_scores_are_no_worse_than_flashlights(beam: int, arpa: Path, tmp_path: Path) -> None:
    # flashlight lets no unit last when it ends a word, reads a unit that comes twice in a word
    # without a blank between, and wants a unit for silence: unheard here.
    units = ["-", "ih", "n", "silence"]
    spellings = [(word, said) for word, said in SPELLINGS if len(said) == len(set(said))]
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text(
        "".join(f"{WORDS[word]} {' '.join(units[u] for u in said)}\n" for word, said in spellings)
    )
    rival = ctc_decoder(
        lexicon=str(lexicon),
        tokens=units,
        lm=str(arpa),
        beam_size=beam,
        beam_threshold=1e9,
        lm_weight=1.3,
        word_score=-0.3,
        blank_token="-",
        sil_token="silence",
        unk_word="<unk>",
    )
    log_probs = 2 * _log_probs(1, 25, 20, 4).float()
    log_probs[:, :, 3] = -1e4
    lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), spellings, 4)
    lengths = torch.full((20,), 25)
    result = ctc_beam_search(
        log_probs, lengths, beam, lm=lm, lm_weight=1.3, word_score=-0.3, log_add=False
    )
    theirs = torch.tensor([n[0].score for n in rival(log_probs.transpose(0, 1).contiguous())])
    ours = result.scores[:, 0]
    if beam == 5:
        finished = ours.isfinite()  # too few prefixes for one of them to end with a word
        ours, theirs = ours[finished], theirs[finished]
        assert len(ours) > 15
    assert ours.mean() >= theirs.mean()
    if beam == 500:
        assert (ours >= theirs - 1e-4 * theirs.abs()).all()


def test_of_many_homophones_the_likeliest_are_kept(arpa: Path) -> None:
    lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), SPELLINGS, 3, homophones=1)
    assert lm.options == 2
    assert lm.words[lm.words >= 0].tolist().count(1) == 0  # INN is IN's homophone
    assert 0 in lm.words


def test_a_word_that_is_cut_short_is_better_than_nothing(arpa: Path) -> None:
    lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), [(2, [1]), (4, [2, 1, 2])], 3)
    log_probs = torch.full((4, 1, 3), -20.0)
    log_probs[range(4), 0, [1, 0, 2, 1]] = 0.0
    short = ctc_beam_search(log_probs, torch.tensor([4]), 1, lm=lm)
    assert short.tokens[0, 0, : short.lengths[0, 0]].tolist() == [1, 2, 1]
    assert short.words[0, 0, :3].tolist() == [2, -1, -1]
    assert short.scores.item() == -math.inf


def test_a_word_that_is_cut_short_comes_after_whole_ones_however_unlikely(arpa: Path) -> None:
    lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), [(2, [1]), (4, [2, 1])], 3)
    log_probs = torch.tensor([[[-2e4, -2e4, 0.0]]])
    result = ctc_beam_search(log_probs, torch.tensor([1]), 5, lm=lm, nbest=3)
    assert result.tokens[0, 2].tolist() == [2]
    assert result.scores[0].isfinite().tolist() == [True, True, False]


def test_tables_are_single_precision_whatever_torchs_default(arpa: Path) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), SPELLINGS, 3)
    finally:
        torch.set_default_dtype(before)
    tables = lm.model.log_probs, lm.model.backoffs, lm.promises
    assert {table.dtype for table in tables} == {torch.float32}


def test_where_nothing_can_be_spelled_there_is_no_text(arpa: Path) -> None:
    lm = WordNGram.build(NGram.from_arpa(arpa, WORDS), [(0, [1, 2])], 3)
    log_probs = torch.full((3, 1, 3), -50.0)
    log_probs[:, :, 1] = 0.0
    result = ctc_beam_search(log_probs, torch.tensor([3]), 10, lm=lm, nbest=10)
    texts = {
        tuple(tokens[:length].tolist())
        for tokens, length, score in zip(
            result.tokens[0], result.lengths[0], result.scores[0], strict=True
        )
        if score > -math.inf
    }
    assert texts == {(), (1, 2)}


@pytest.mark.parametrize(
    ("spellings", "message"),
    [
        ([], "at least one word, got none"),
        ([(6, [1])], "words must be from 0 to 5, the model's, got 6"),
        ([(0, [])], r"units from 0 to V - 1 = 2, got \[\] for word 0"),
        ([(0, [3])], r"got \[3\] for word 0"),
    ],
)
def test_bad_spellings_are_named(
    spellings: list[tuple[int, list[int]]], message: str, arpa: Path
) -> None:
    with pytest.raises(ValueError, match=f"^WordNGram: .*{message}"):
        WordNGram.build(NGram.from_arpa(arpa, WORDS), spellings, 3)
