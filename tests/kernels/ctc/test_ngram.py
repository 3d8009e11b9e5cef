"""N-gram tables: the scores of the definition and of KenLM, for every history."""

import gzip
import math
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ctc.ngram import NGram

UNITS = ["<blk>", "▁a", "b", "c", "'"]
ENDS = ["<s>", "</s>"]
Table = dict[tuple[str, ...], tuple[float, float]]


def _model(order: int, seed: int, kept: float = 0.5, unknown: bool = True) -> Table:
    """A random model: each possible n-gram is there with probability `kept`, with its prefix."""
    draw = random.Random(seed)
    words = [*UNITS[1:], *ENDS, *(["<unk>"] if unknown else [])]
    table: Table = {(word,): (-draw.uniform(0.1, 3), draw.uniform(-1, 0.2)) for word in words}
    for n in range(2, order + 1):
        for ngram in product(words, repeat=n):
            known = ngram[:-1] in table and ngram[1:] in table
            possible = known and "</s>" not in ngram[:-1] and "<s>" not in ngram[1:]
            if possible and draw.random() < kept:
                table[ngram] = (-draw.uniform(0.1, 3), draw.uniform(-1, 0.2))
    order = max(map(len, table))  # the longest n-grams have no back-off
    return {
        key: (round(p, 4), round(b, 4) if len(key) < order else 0.0)
        for key, (p, b) in table.items()
    }


def _write(table: Table, path: Path) -> Path:
    order = max(map(len, table))
    by_order = [{k: v for k, v in table.items() if len(k) == n} for n in range(1, order + 1)]
    lines = ["\\data\\"]
    lines += [f"ngram {n}={len(grams)}" for n, grams in enumerate(by_order, 1)]
    for n, grams in enumerate(by_order, 1):
        lines += ["", f"\\{n}-grams:"]
        for words, (p, b) in grams.items():
            lines.append(f"{p}\t{' '.join(words)}" + (f"\t{b}" if n < order and b else ""))
    text = "\n".join([*lines, "", "\\end\\", ""])
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def _defined(table: Table, words: Sequence[str]) -> float:
    """log10 p(last | before) by the definition of a back-off model."""
    key = tuple(words)
    if key in table:
        return table[key][0]
    if len(key) == 1:
        return _defined(table, ["<unk>"]) if ("<unk>",) in table else -100.0
    return table.get(key[:-1], (0.0, 0.0))[1] + _defined(table, key[1:])


def _scores(model: NGram, said: Sequence[int]) -> list[float]:
    state = torch.tensor(model.start)
    scores = []
    for unit in said:
        state, score = model.step(state, torch.tensor(unit))
        scores.append(score.item())
    return [*scores, model.finish(state).item()]


@settings(max_examples=60)
@given(
    order=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    said=st.lists(st.integers(1, 4), max_size=8),
    kept=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_scores_are_those_of_the_definition(
    order: int, seed: int, said: list[int], kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = _model(order, seed, kept)
    path = _write(table, tmp_path_factory.mktemp("lm") / "lm.arpa")
    words = ["<s>", *(UNITS[unit] for unit in said), "</s>"]
    expected = [_defined(table, words[max(0, i - order + 1) : i + 1]) for i in range(1, len(words))]
    assert _scores(NGram.from_arpa(path, UNITS), said) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("unknown", [True, False])
def test_scores_are_those_of_kenlm(order: int, unknown: bool, tmp_path: Path) -> None:
    units = [*UNITS, "never seen"]
    path = _write(_model(order, order, 0.3, unknown), tmp_path / "lm.arpa.gz")
    model = NGram.from_arpa(path, units)
    kenlm = KenLM(str(path), Dictionary(units))
    draw = random.Random(0)
    for _ in range(50):
        said = draw.choices(range(1, len(units)), k=7)
        state = kenlm.start(False)
        expected = []
        for unit in said:
            state, score = kenlm.score(state, unit)
            expected.append(score)
        expected.append(kenlm.finish(state)[1])
        assert _scores(model, said) == pytest.approx(expected, abs=1e-4)


def test_a_pruned_prefix_is_scored_as_it_was(tmp_path: Path) -> None:
    table = _model(3, 1, 1.0)
    del table["b", "c"]  # (b, c, *) stay
    model = NGram.from_arpa(_write(table, tmp_path / "lm.arpa"), UNITS)
    b, c, a = (UNITS.index(unit) for unit in ("b", "c", "▁a"))
    expected = [
        _defined(table, ["<s>", "b"]),
        _defined(table, ["<s>", "b", "c"]),
        _defined(table, ["b", "c", "▁a"]),
        _defined(table, ["c", "▁a", "</s>"]),
    ]
    assert _scores(model, [b, c, a]) == pytest.approx(expected, abs=1e-5)


def test_a_batch_is_looked_up_at_once(tmp_path: Path) -> None:
    model = NGram.from_arpa(_write(_model(3, 2), tmp_path / "lm.arpa"), UNITS)
    states = torch.full((2, 3), model.start)
    units = torch.tensor([[1, 2, 3], [4, 1, 2]])
    after, scores = model.step(*model.step(states, units)[:1], units.flip(1))
    for b, k in product(range(2), range(3)):
        state, _ = model.step(states[b, k], units[b, k])
        state, score = model.step(state, units.flip(1)[b, k])
        assert (after[b, k], scores[b, k]) == (state, score)
    assert model.finish(after).shape == (2, 3)


def test_probabilities_sum_to_one(tmp_path: Path) -> None:
    words = [*UNITS[1:], "</s>"]
    table: Table = {(word,): (math.log10(1 / len(words)), 0.0) for word in words}
    table["<s>",] = (-99.0, math.log10(0.5 / (1 - 1 / len(words))))
    table["<s>", "b"] = (math.log10(0.5), 0.0)
    model = NGram.from_arpa(_write(table, tmp_path / "lm.arpa"), UNITS)
    start = torch.full((4,), model.start)
    _, scores = model.step(start, torch.arange(1, 5))
    total = (10**scores).sum() + 10 ** model.finish(start[0])
    assert total.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no .data. with counts"),
        ("\\data\\\nngram 1=2\n\n\\1-grams:\n-1 b\n\\end\\\n", "promises 2 1-grams and has 1"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 b c d\n\\end\\\n", "has 4 fields"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nx b\n\\end\\\n", "could not convert"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n1 b\n\\end\\\n", "log10-probability of 1.0"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 z\n\\end\\\n", "one of other words"),
        (
            "\\data\\\nngram 1=1\nngram 2=1\n\n\\1-grams:\n-1 b\n\n\\2-grams:\n-1 b c\n\\end\\\n",
            "not among its 1-grams",
        ),
    ],
)
def test_a_bad_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"lm.arpa: expected an ARPA model.*{message}"):
        NGram.from_arpa(path, UNITS)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.arpa: .*No such file"):
        NGram.from_arpa(tmp_path / "none.arpa", UNITS)
    path = _write(_model(2, 0), tmp_path / "lm.arpa.gz")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"lm\.arpa\.gz: expected an ARPA model"):
        NGram.from_arpa(path, UNITS)
