import gzip
import lzma
import math
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import DataError
from asr.lexicon import Lexicon

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import kneser_ney as kn
import make_language_model as lm

WORDS = ("A", "B", "C", "D")
VOCABULARY = (*lm.MARKS, *WORDS)
V = len(VOCABULARY)

Model = list[dict[tuple[str, ...], tuple[float, float]]]
sentences_of = st.lists(
    st.lists(st.sampled_from((*WORDS, "X")), min_size=1, max_size=6).map(" ".join),
    min_size=2,
    max_size=12,
)


def sample(number: int, seed: int = 0) -> list[str]:
    """Sentences of a Markov chain over WORDS, so that there is something to learn."""
    rng = random.Random(seed)
    weights = {word: [rng.random() ** 3 for _ in WORDS] for word in WORDS}
    sentences = []
    for _ in range(number):
        words = rng.choices(WORDS)
        while rng.random() < 0.85:
            words += rng.choices(WORDS, weights[words[-1]])
        sentences.append(" ".join(words))
    return sentences


def read_arpa(path: Path) -> Model:
    """(log10 p, log10 backoff) of the n-grams of each order."""
    model: Model = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if line.endswith("-grams:"):
            model.append({})
        elif model and line and not line.startswith("\\"):
            prob, words, *backoff = line.split("\t")
            model[-1][tuple(words.split())] = float(prob), float(backoff[0]) if backoff else 0.0
    return model


def log10_prob(model: Model, context: tuple[str, ...], word: str) -> float:
    if (*context, word) in model[len(context)]:
        return model[len(context)][*context, word][0]
    backoff = model[len(context) - 1].get(context, (0.0, 0.0))[1]
    return backoff + log10_prob(model, context[1:], word)


def naive_kneser_ney(
    sentences: list[str], order: int, context: tuple[str, ...], word: str
) -> float:
    """Interpolated modified Kneser-Ney of one word, straight from the definition."""
    known = [[w if w in WORDS else "<unk>" for w in s.split()] for s in sentences]
    padded = [["<s>", *words, "</s>"] for words in known]
    n = len(context) + 1
    counts: Counter[tuple[str, ...]] = Counter()
    before = defaultdict(set)
    for words in padded:
        for i in range(len(words) - n + 1):
            gram = tuple(words[i : i + n])
            if "<unk>" not in gram and gram != ("<s>",):
                counts[gram] += 1
                before[gram].add(words[i - 1] if i else None)
    if n < order:
        counts = Counter({g: c if g[0] == "<s>" else len(before[g]) for g, c in counts.items()})
    discount = kn.discounts(np.array(list(counts.values()), dtype=np.int64))
    here = {g: c for g, c in counts.items() if g[:-1] == context}
    total = sum(here.values())
    freed = sum(discount[min(c, 3)] for c in here.values()) / total
    gram = (*context, word)
    own = max(0, here.get(gram, 0) - discount[min(here.get(gram, 0), 3)]) / total
    shorter = naive_kneser_ney(sentences, order, context[1:], word) if context else 1 / (V - 1)
    return own + freed * shorter


@given(sentences_of)
def test_probabilities_are_those_of_the_definition(sentences: list[str]) -> None:
    orders = kn.estimate(lm.encode(sentences, VOCABULARY), 3, V)
    for n, order in enumerate(orders[1:], 2):
        for key, prob in zip(order.keys.tolist(), order.prob, strict=True):
            words = [VOCABULARY[key // V ** (n - 1 - i) % V] for i in range(n)]
            expected = naive_kneser_ney(sentences, 3, tuple(words[:-1]), words[-1])
            assert prob == pytest.approx(expected, rel=1e-9)


@given(sentences_of, st.sampled_from([2, 3, 4]), st.floats(-12, -2))
def test_each_context_sums_to_one_however_much_is_pruned(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[str], order: int, threshold: float
) -> None:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa.gz"
    orders = kn.estimate(lm.encode(sentences, VOCABULARY), order, V)
    pruned = kn.keep(orders, kn.prune(orders, math.exp(threshold)))
    lm.write_arpa(path, pruned, VOCABULARY)
    model = read_arpa(path)
    contexts = {(), *(gram for grams in model[:-1] for gram in grams if gram[-1] != "</s>")}
    contexts.discard(("<unk>",))
    for context in contexts:
        total = sum(10 ** log10_prob(model, context, word) for word in VOCABULARY if word != "<s>")
        # Three decimals of log10 are 0.12 %; a word and up to three backoffs are rounded.
        assert total == pytest.approx(1, abs=4 * 0.0012)


def test_pruning_keeps_what_the_kept_stand_on() -> None:
    orders = kn.estimate(lm.encode(sample(200), VOCABULARY), 4, V)
    everything = sum(len(order.keys) for order in orders)
    assert sum(mask.sum() for mask in kn.prune(orders, -1.0)) == everything
    sizes = []
    for threshold in (1e-5, 1e-4, 1e-3, 1e-2):
        kept = kn.prune(orders, threshold)
        sizes.append(sum(int(mask.sum()) for mask in kept))
        for order, shorter, mask in zip(orders[1:], kept, kept[1:], strict=False):
            assert shorter[order.context[mask]].all()
            assert shorter[order.suffix[mask]].all()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    threshold = lm.threshold_for(orders, everything // 2)
    left = sum(int(mask.sum()) for mask in kn.prune(orders, threshold))
    assert everything // 2 - 5 <= left <= everything // 2


def test_loss_is_the_relative_entropy_of_leaving_one_out(tmp_path: Path) -> None:
    tokens = lm.encode(sample(60), VOCABULARY)
    orders = kn.estimate(tokens, 2, V)
    bigrams = orders[1]
    first, second = orders[0].prob, {}
    for key, prob in zip(bigrams.keys.tolist(), bigrams.prob, strict=True):
        second[divmod(key, V)] = prob

    def distribution(context: int, without: int | None) -> dict[int, float]:
        listed = {w: p for (h, w), p in second.items() if h == context and w != without}
        others = [w for w in range(V) if w != kn.START and w not in listed]
        backoff = (1 - sum(listed.values())) / sum(first[w] for w in others)
        return listed | {w: backoff * first[w] for w in others}

    for (context, word), loss in zip(second, bigrams.loss, strict=True):
        full, pruned = distribution(context, None), distribution(context, word)
        divergence = sum(p * math.log(p / pruned[w]) for w, p in full.items())
        history = (tokens == context).sum() / len(tokens)
        assert loss == pytest.approx(history * divergence, rel=1e-6, abs=1e-12)


def test_the_script_makes_a_model_that_kenlm_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Lexicon((word, ["AH"]) for word in WORDS).write(tmp_path / "lexicon.txt")
    with lzma.open(tmp_path / "books.txt.xz", "wt") as file:
        file.write("\n".join(sample(400)))
    (tmp_path / "prompts.tsv").write_text("path\ttranscript\na.wav\tA, b! C\nb.wav\tD D X D D\n")
    (tmp_path / "held.csv").write_text("".join(f"id|raw|{s}\n" for s in sample(50, seed=0)))
    (tmp_path / "secret.txt").write_text("d d x d d\n")
    lexicon, out = str(tmp_path / "lexicon.txt"), tmp_path / "lm.arpa.gz"
    arguments = [
        lexicon, str(out), "--text", f"{tmp_path}/books.txt.xz", "--text",
        f"{tmp_path}/prompts.tsv", "--exclude", f"{tmp_path}/secret.txt", "--held-out",
        f"{tmp_path}/held.csv",
    ]  # fmt: skip
    lm.main(arguments)
    printed = capsys.readouterr().out
    assert "prompts.tsv: 3 words, 0 not in the lexicon" in printed
    weights = [float(weight) for weight in printed.split("weights: ")[1].split("\n")[0].split(", ")]
    assert weights[0] > weights[1]  # of one sentence
    assert sum(weights) == pytest.approx(1, abs=0.001)
    model = read_arpa(out)
    assert all("<unk>" not in gram for grams in model[1:] for gram in grams)

    # The perplexity that KenLM gives is that of the model as it is written.
    total, words = 0.0, 0
    for sentence in sample(50, seed=0):
        history = ["<s>"]
        for word in [*sentence.split(), "</s>"]:
            total += log10_prob(model, tuple(history[-2:]), word)
            history.append(word)
            words += 1
    assert f"held.csv: perplexity {10 ** (-total / words):.1f}, 0 unknown words" in printed
    # Four words and an end, each as likely, would be 5; a chain with habits is more predictable.
    assert 10 ** (-total / words) < 4.5

    first = out.read_bytes()
    lm.main(arguments)
    assert out.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "books.txt.xz", "held.csv", "lexicon.txt", "lm.arpa.gz", "prompts.tsv", "secret.txt",
    ]  # fmt: skip


@given(sentences_of, sentences_of, st.floats(0, 1), st.sampled_from([2, 3]))
def test_a_mixture_lists_the_weighted_mean_of_its_models(
    ours: list[str], theirs: list[str], weight: float, order: int
) -> None:
    texts = [lm.encode(sentences, VOCABULARY) for sentences in (ours, theirs)]
    models = [kn.estimate(text, order, V) for text in texts]
    mixture = kn.mix(models, [weight, 1 - weight])
    for n, longest in enumerate(mixture, 1):
        listed = {key for model in models for key in model[n - 1].keys.tolist()}
        assert longest.keys.tolist() == sorted(listed)
        for key, prob in zip(longest.keys.tolist(), longest.prob, strict=True):
            words = [key // V ** (n - 1 - i) % V for i in range(n)]
            first, second = (_backed_off(model, words, order) for model in models)
            assert prob == pytest.approx(weight * first + (1 - weight) * second, rel=1e-6)
            frequencies = [
                np.count_nonzero(
                    (np.lib.stride_tricks.sliding_window_view(text, n) == words).all(1)
                )
                / len(text)
                for text in texts
            ]
            assert longest.frequency[longest.keys.tolist().index(key)] == pytest.approx(
                weight * frequencies[0] + (1 - weight) * frequencies[1]
            )


def _backed_off(orders: list[kn.Order], words: list[int], order: int) -> float:
    """p of the last of `words` after the others, as ARPA's readers find it."""

    def factor(n: int, place: int) -> float:
        return float(kn.backoffs(orders[n - 1], orders[n])[place]) if n < order else 1.0

    def place_of(grams: list[int]) -> int | None:
        keys = orders[len(grams) - 1].keys.tolist()
        key = sum(word * V**i for i, word in enumerate(reversed(grams)))
        return keys.index(key) if key in keys else None

    place = place_of(words)
    if place is not None:
        return float(orders[len(words) - 1].prob[place])
    context = place_of(words[:-1])
    backoff = 1.0 if context is None else factor(len(words) - 1, context)
    return backoff * _backed_off(orders, words[1:], order)


@given(sentences_of, sentences_of)
def test_probabilities_of_a_text_are_those_that_a_reader_finds(
    sentences: list[str], text: list[str]
) -> None:
    orders = kn.estimate(lm.encode(sentences, VOCABULARY), 3, V)
    tokens = lm.encode(text, VOCABULARY)
    expected = []
    for place, word in enumerate(tokens.tolist()):
        if word in (kn.START, kn.UNKNOWN):
            continue
        words = [word]
        for before in reversed(tokens[max(0, place - 2) : place].tolist()):
            if before == kn.UNKNOWN or words[0] == kn.START:
                break
            words.insert(0, before)
        expected.append(_backed_off(orders, words, 3))
    np.testing.assert_allclose(kn.probabilities(orders, tokens), expected, rtol=1e-9)


def test_weights_of_a_mixture_suit_every_held_out_text_alike() -> None:
    rng = np.random.default_rng(0)
    first = np.stack([rng.random(500), np.full(500, 1e-9), rng.random(500)])
    second = np.stack([np.full(9, 1e-9), rng.random(9), np.full(9, 1e-9)])
    weights = lm.mixture_weights([first, second])
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == pytest.approx(0.5, abs=0.01)  # however short its text is
    none = lm.mixture_weights([np.stack([rng.random(50), np.full(50, 1e-9)])])
    assert none[1] == pytest.approx(0.01, rel=0.02)
    better = lm.mixture_weights([np.stack([0.6 * rng.random(900), rng.random(900)])])
    assert better[0] < better[1]


def test_the_file_is_pruned_to_its_size(tmp_path: Path) -> None:
    rng = random.Random(1)
    vocabulary = [*lm.MARKS, *(f"W{n}" for n in range(300))]
    sentences = [
        " ".join(vocabulary[3 + int(300 * rng.random() ** 2)] for _ in range(10))
        for _ in range(900)
    ]
    orders = kn.estimate(lm.encode(sentences, vocabulary), 3, len(vocabulary))
    out = tmp_path / "lm.arpa.gz"
    for megabytes in (0.02, 0.04):
        lm.make(orders, vocabulary, out, megabytes)
        assert 0.9 * megabytes * 1e6 < out.stat().st_size <= megabytes * 1e6


@pytest.mark.parametrize("kilobytes", [1, 1.2, 3, 4.5, 5])  # single words take 0.95, all 4.7
def test_n_grams_that_cost_alike_do_not_hinder_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kilobytes: float
) -> None:
    """They stay or go together, so that the file may end far below the size that it may have."""
    vocabulary = [*lm.MARKS, *(f"W{n}" for n in range(400))]
    sentences = [f"W{n} W{n + 1}" for n in range(0, 400, 2)]
    orders = kn.estimate(lm.encode(sentences, vocabulary), 3, len(vocabulary))
    turns = iter(range(10))
    write_arpa = lm.write_arpa
    monkeypatch.setattr(lm, "write_arpa", lambda *given: (next(turns), write_arpa(*given)))
    lm.make(orders, vocabulary, tmp_path / "lm.arpa.gz", kilobytes / 1000)
    assert (tmp_path / "lm.arpa.gz").stat().st_size <= 1000 * kilobytes


def test_what_is_left_out_of_the_texts_can_be_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Lexicon((word, ["AH"]) for word in WORDS).write(tmp_path / "lexicon.txt")
    (tmp_path / "text.txt").write_text("a b\nc d\n")
    (tmp_path / "more.txt").write_text("c c\n")
    (tmp_path / "held.txt").write_text("a b\n")
    (tmp_path / "gaps.txt").write_text("\na b\n\n")
    held = [f"{tmp_path}/held.txt", f"{tmp_path}/gaps.txt"]
    lm.main(
        [f"{tmp_path}/lexicon.txt", f"{tmp_path}/lm.arpa.gz", "--text", f"{tmp_path}/text.txt",
         "--text", f"{tmp_path}/more.txt", "--exclude", held[0], "--held-out", *held]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "text.txt: 2 words" in printed
    first, second = (line.split("perplexity")[1] for line in printed.splitlines()[-2:])
    assert first == second  # an empty line is no sentence


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt.xz").write_bytes(b"not xz")
    packed = gzip.compress("\n".join(sample(200)).encode())
    (tmp_path / "bad.txt.gz").write_bytes(packed[:30] + bytes([255] * 20) + packed[50:])
    (tmp_path / "bad.tsv").write_text("path\ttext\na\tb\n")
    (tmp_path / "short.tsv").write_text("path\ttranscript\na.wav\n")
    (tmp_path / "marked.tsv").write_text("\ufefftranscript\nhello\n")
    assert list(lm.read_sentences(tmp_path / "marked.tsv")) == ["HELLO"]
    for name, reason in [
        ("none.txt", "cannot read"),
        ("bad.txt.xz", "cannot read"),
        ("bad.txt.gz", "cannot read"),
        ("bad.tsv", "transcript"),
        ("short.tsv", "transcript in each row"),
    ]:
        with pytest.raises(DataError, match=reason) as error:
            list(lm.read_sentences(tmp_path / name))
        assert name in str(error.value)
    Lexicon((f"W{n}", ["AH"]) for n in range(100)).write(tmp_path / "lexicon.txt")
    (tmp_path / "empty.txt").write_text("x y\n")
    with pytest.raises(DataError, match=r"empty\.txt: expected sentences with words"):
        lm.main([f"{tmp_path}/lexicon.txt", "x", "--text", f"{tmp_path}/empty.txt"])
    with pytest.raises(SystemExit):
        lm.main([f"{tmp_path}/lexicon.txt", "x", "--text", "a.txt", "--text", "b.txt"])
    (tmp_path / "word.txt").write_text("w1\n")
    with pytest.raises(DataError, match=r"lm: .* with single words alone: allow it more"):
        lm.main(
            [f"{tmp_path}/lexicon.txt", f"{tmp_path}/lm", "--text", f"{tmp_path}/word.txt",
             "--max-megabytes", "0.0001"]
        )  # fmt: skip
    assert not list(tmp_path.glob("*lm*"))
    with pytest.raises(DataError, match="--order 1: expected at least 2"):
        lm.main([f"{tmp_path}/lexicon.txt", "x", "--text", "none.txt", "--order", "1"])
    with pytest.raises(DataError, match="--order 10"):
        lm.main([f"{tmp_path}/lexicon.txt", "x", "--text", "none.txt", "--order", "10"])


def test_a_text_shorter_than_the_longest_n_gram() -> None:
    orders = kn.estimate(lm.encode(["A"], VOCABULARY), 4, V)
    assert [len(order.keys) for order in orders] == [V, 2, 1, 0]
    mixed = kn.mix([orders, kn.estimate(lm.encode(sample(9), VOCABULARY), 4, V)], [0.5, 0.5])
    assert len(mixed[3].keys) > 0
