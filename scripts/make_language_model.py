"""Make a pruned n-gram language model (ARPA, gzipped) over the words of a lexicon.

Interpolated modified Kneser-Ney (Chen and Goodman 1998), pruned by relative entropy (Stolcke
1998, histories weighted by their counts, since Kneser-Ney's lower orders do not say how often a
history occurs) until the file is small enough. Perplexities of held-out text are printed.

    python scripts/make_language_model.py LEXICON OUT.arpa.gz --text FILE[:COPIES] ...

The packaged model's, in the folder of the speech data, with the manifests in `data`:

    python scripts/make_language_model.py lexicon.txt lm.arpa.gz --max-megabytes 10 \\
        --text text/books.txt.xz \\
        --text ljspeech/sentences.csv:5 --exclude ljspeech/utterances.tsv \\
        --text data/speechocean762_train.jsonl.gz:20 \\
        --text data/librispeech-mini_train.jsonl.gz:20 --text data/fsdd_train.jsonl.gz:2

A FILE is a manifest (.jsonl.gz), a table with a `transcript` column (.tsv), lines whose last
field after `|` is a sentence (.csv), or plain sentences a line; .xz and .gz are unpacked.
"""

import argparse
import csv
import gzip
import lzma
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.data import read_manifest
from asr.errors import AsrError, DataError
from asr.files import replacing
from asr.lexicon import Lexicon
from asr.text import normalize
from asr.word_graph import load_kenlm

UNKNOWN, START, END = 0, 1, 2
MARKS = ("<unk>", "<s>", "</s>")
_NEVER = -99.0  # ARPA's log10 of zero
_BYTES_A_GRAM = 7.0  # first guess of what an n-gram takes in the gzipped file

Keys = NDArray[np.uint64]  # n-grams as numbers in base V, first word first
Floats = NDArray[np.float64]


@dataclass
class Order:
    """The n-grams of one length, sorted, with what is known of each."""

    keys: Keys
    prob: Floats  # p(w | h), interpolated
    raw: NDArray[np.int64]  # occurrences
    context: NDArray[np.int64]  # place of the first n-1 words in the order below
    suffix: NDArray[np.int64]  # place of the last n-1 words in the order below
    loss: Floats  # relative entropy that leaving this n-gram out would cost


def read_sentences(path: Path) -> Iterator[str]:
    """Normalised sentences of one text file.

    Raises:
        DataError: the file cannot be read or has no `transcript` column.
    """
    if path.name.endswith(".jsonl.gz"):
        yield from (utterance.text for utterance in read_manifest(path))
        return
    openers = {".xz": lzma.open, ".gz": gzip.open}
    kind = path.with_suffix("").suffix if path.suffix in openers else path.suffix
    try:
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8", newline="") as lines:
            if kind == ".tsv":
                for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                    if "transcript" not in row:
                        raise DataError(f"{path}: expected a transcript column, got {list(row)}")
                    yield normalize(row["transcript"])
            else:
                for line in lines:
                    yield normalize(line.rsplit("|", 1)[-1] if kind == ".csv" else line)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot read the text: {error}") from None


def encode(sentences: Iterable[str], vocabulary: Sequence[str]) -> NDArray[np.int64]:
    """Sentences as one stream of word numbers, each within START and END; others UNKNOWN."""
    ids = {word: index for index, word in enumerate(vocabulary)}

    def stream() -> Iterator[int]:
        for sentence in sentences:
            if sentence:
                yield START
                yield from (ids.get(word, UNKNOWN) for word in sentence.split())
                yield END

    return np.fromiter(stream(), dtype=np.int64)


def count(
    tokens: NDArray[np.int64],  # [T]
    order: int,
    highest: bool,
    size: int,
) -> tuple[Keys, NDArray[np.int64], NDArray[np.int64]]:
    """Sorted n-grams of one length without unknown words: keys, occurrences, adjusted counts.

    The adjusted count of Kneser-Ney is the number of different words that precede the n-gram;
    n-grams of the highest order, and those at the start of a sentence, are counted as they are.
    """
    words = np.lib.stride_tricks.sliding_window_view(tokens, order)
    inside = (words != UNKNOWN).all(1) & (words[:, 1:] != START).all(1)
    inside &= words[:, 0] != START if order == 1 else True
    keys = np.zeros(len(words), dtype=np.uint64)
    for column in words.T:
        keys = keys * np.uint64(size) + column.astype(np.uint64)
    starting = words[:, 0] == START
    unique, raw = np.unique(keys[inside], return_counts=True)
    if highest:
        return unique, raw, raw
    follows = inside & ~starting
    follows[0] = False
    before = tokens[np.nonzero(follows)[0] - 1].astype(np.uint64)
    power = np.uint64(size**order)
    different = np.unique(before * power + keys[follows]) % power
    preceded, adjusted = np.unique(different, return_counts=True)
    counts = raw.copy()
    counts[np.searchsorted(unique, preceded)] = adjusted
    return unique, raw, counts


def discounts(counts: NDArray[np.int64]) -> Floats:
    """What is taken off counts of 0, 1, 2 and more (Chen and Goodman 1998, section 3.2)."""
    ones, twos, threes, fours = (int((counts == k).sum()) for k in range(1, 5))
    if not min(ones, twos, threes):
        return np.array([0.0, 0.5, 1.0, 1.5])  # too little text to estimate them
    y = ones / (ones + 2 * twos)
    wanted = [1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes]
    # A vocabulary without the rare words has few singletons, which makes the first one negative.
    return np.array([0.0, *np.clip(wanted, 0.1, [1, 2, 3])])


def estimate(tokens: NDArray[np.int64], order: int, size: int) -> list[Order]:
    """Interpolated modified Kneser-Ney probabilities of all n-grams up to `order` words.

    Args:
        tokens: [T] word numbers as `encode` makes them.
        order: longest n-gram; at least 2.
        size: number of words V, marks counted; V ** order must be below 2 ** 64.
    """
    keys, raw, counts = count(tokens, 1, False, size)
    occurrences = np.bincount(tokens, minlength=size)
    discount = discounts(counts)[np.minimum(counts, 3)]
    prob = np.full(size, discount.sum() / counts.sum() / (size - 1))
    prob[keys] += (counts - discount) / counts.sum()
    prob[START] = 0.0
    none = np.zeros(0, dtype=np.int64)
    all_words = np.arange(size, dtype=np.uint64)
    orders = [Order(all_words, prob, occurrences, none, none, np.zeros(0))]
    for n in range(2, order + 1):
        lower = orders[-1]
        keys, raw, counts = count(tokens, n, n == order, size)
        context = np.searchsorted(lower.keys, keys // np.uint64(size))
        suffix = np.searchsorted(lower.keys, keys % np.uint64(size ** (n - 1)))
        discount = discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(context, counts)
        freed = np.bincount(context, discount)[context] / total[context]
        prob = (counts - discount) / total[context] + freed * lower.prob[suffix]
        loss = _loss(prob, lower.prob[suffix], lower.raw[context] / len(tokens), context)
        orders.append(Order(keys, prob, raw, context, suffix, loss))
    return orders


def _loss(prob: Floats, shorter: Floats, history: Floats, context: NDArray[np.int64]) -> Floats:
    """Relative entropy (nats a word) that leaving each n-gram out costs (Stolcke 1998, eq. 5)."""
    left = _left(prob, context)[context]
    left_shorter = _left(shorter, context)[context]
    backoff = left / left_shorter
    backoff_without = (left + prob) / (left_shorter + shorter)
    change = np.log(backoff_without) - np.log(backoff)
    return -history * (prob * (np.log(shorter * backoff_without) - np.log(prob)) + left * change)


def _left(prob: Floats, context: NDArray[np.int64]) -> Floats:
    """Probability that the n-grams of each context leave to the words they do not list."""
    return np.maximum(1 - np.bincount(context, prob), 1e-9)


def prune(orders: Sequence[Order], threshold: float) -> list[NDArray[np.bool_]]:
    """Which n-grams to keep: those that cost at least `threshold`, and what those stand on.

    The first and last n-1 words of an n-gram are kept with it: the ARPA format asks for the
    first, and the backoff weights for the last.
    """
    kept = [orders[-1].loss >= threshold]
    for shorter, longer in zip(orders[-2:0:-1], orders[:1:-1], strict=True):
        mask = shorter.loss >= threshold
        mask[longer.context[kept[0]]] = True
        mask[longer.suffix[kept[0]]] = True
        kept.insert(0, mask)
    return [np.ones(len(orders[0].keys), dtype=np.bool_), *kept]


def threshold_for(orders: Sequence[Order], grams: float) -> float:
    """The pruning threshold at which about `grams` n-grams are left."""
    low, high = -30.0, 0.0  # natural logarithms
    for _ in range(40):
        middle = (low + high) / 2
        if sum(int(mask.sum()) for mask in prune(orders, math.exp(middle))) > grams:
            low = middle
        else:
            high = middle
    return math.exp(high)


def write_arpa(
    path: Path,
    orders: Sequence[Order],
    kept: Sequence[NDArray[np.bool_]],
    vocabulary: Sequence[str],
) -> None:
    """Write the kept n-grams as gzipped ARPA, atomically; log10 with three decimals."""
    header = "".join(f"ngram {n}={mask.sum()}\n" for n, mask in enumerate(kept, 1))
    with (
        replacing(path) as partial,
        partial.open("wb") as raw,
        # No name and no time in its header, so that the same model is the same bytes.
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as file,
    ):
        file.write(f"\\data\\\n{header}".encode())
        for n in range(1, len(orders) + 1):
            file.write(f"\n\\{n}-grams:\n".encode())
            file.write("".join(_lines(n, orders, kept, vocabulary)).encode())
        file.write(b"\n\\end\\\n")


def _lines(
    n: int, orders: Sequence[Order], kept: Sequence[NDArray[np.bool_]], vocabulary: Sequence[str]
) -> Iterator[str]:
    order, mask = orders[n - 1], kept[n - 1]
    with np.errstate(divide="ignore"):
        probs = np.maximum(np.log10(order.prob[mask]), _NEVER)
    backoffs = np.zeros(len(order.keys))
    if n < len(orders):
        longer, used = orders[n], kept[n]
        context = longer.context[used]
        left = _left(longer.prob[used], context)
        left_shorter = _left(order.prob[longer.suffix[used]], context)
        backoffs[: len(left)] = np.log10(left / left_shorter)
    size = np.uint64(len(vocabulary))
    keys = order.keys[mask]
    grams = [""] * len(keys)
    for _ in range(n):  # from the last word to the first
        words = [vocabulary[index] for index in (keys % size).tolist()]
        grams = [f"{word} {gram}" for word, gram in zip(words, grams, strict=True)]
        keys = keys // size
    for prob, gram, backoff in zip(probs.tolist(), grams, backoffs[mask].tolist(), strict=True):
        tail = f"\t{backoff:.3f}" if backoff else ""
        yield f"{prob:.3f}\t{gram.rstrip()}{tail}\n"


def perplexity(
    path: Path, vocabulary: Sequence[str], sentences: Iterable[str]
) -> tuple[float, int]:
    """Perplexity a known word or end of sentence, and the number of unknown words."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    model = load_kenlm(path, tuple(vocabulary))
    total, words, unknown = 0.0, 0, 0
    for sentence in sentences:
        state = model.start(False)
        for word in sentence.split():
            state, score = model.score(state, ids.get(word, UNKNOWN))
            known = word in ids
            total += score * known
            words += known
            unknown += not known
        total += model.finish(state)[1]
        words += 1
    return 10 ** (-total / words), unknown


def _parse_text(argument: str) -> tuple[Path, int]:
    path, colon, copies = argument.rpartition(":")
    return (Path(path), int(copies)) if colon and copies.isdigit() else (Path(argument), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lexicon", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=_parse_text, action="append", required=True)
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="sentences to leave out"
    )
    parser.add_argument("--held-out", type=Path, action="append", default=[], help="to measure")
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--max-megabytes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    vocabulary = [*MARKS, *sorted(Lexicon.read(options.lexicon).words())]
    if len(vocabulary) ** options.order >= 2**64:
        raise DataError(f"--order {options.order}: too long for {len(vocabulary)} words; make it 3")
    excluded = {sentence for path in options.exclude for sentence in read_sentences(path)}
    parts = []
    for path, copies in options.text:
        sentences = (sentence for sentence in read_sentences(path) if sentence not in excluded)
        tokens = encode(sentences, vocabulary)
        words = int((tokens > END).sum())
        unknown = int((tokens == UNKNOWN).sum())
        print(f"{path}: {words + unknown} words, {unknown} not in the lexicon, {copies} times")
        parts += [tokens] * copies
    orders = estimate(np.concatenate(parts), options.order, len(vocabulary))
    make(orders, vocabulary, options.out, options.max_megabytes)
    for path in options.held_out:
        value, unknown = perplexity(options.out, vocabulary, read_sentences(path))
        print(f"{path}: perplexity {value:.1f}, {unknown} unknown words")


def make(orders: Sequence[Order], vocabulary: Sequence[str], out: Path, megabytes: float) -> None:
    """Write the largest pruned model whose file has at most `megabytes`."""
    bytes_a_gram = _BYTES_A_GRAM
    everything = sum(len(order.keys) for order in orders)
    while True:
        grams = min(everything, 0.99 * megabytes * 1e6 / bytes_a_gram)
        threshold = threshold_for(orders, grams)
        kept = prune(orders, threshold)
        write_arpa(out, orders, kept, vocabulary)
        size = out.stat().st_size
        counts = [int(mask.sum()) for mask in kept]
        print(f"{out}: {size / 1e6:.2f} MB, n-grams {counts}, threshold {threshold:.2e}")
        full = size > 0.95 * megabytes * 1e6 or sum(counts) >= 0.999 * everything
        if full and size <= megabytes * 1e6:
            return
        bytes_a_gram = size / sum(counts)


if __name__ == "__main__":
    try:
        main()
    except AsrError as error:
        sys.exit(f"make_language_model: {error}")
