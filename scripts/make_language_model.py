"""Make a pruned n-gram language model (ARPA, gzipped) over the words of a lexicon.

Each --text is a model of its own, interpolated modified Kneser-Ney (Chen and Goodman 1998). They
are mixed with the weights that suit the --held-out texts best (each of these counts alike, and no
text gets less than a hundredth), and the mixture is pruned by relative entropy (Stolcke 1998,
histories weighted by their counts, since Kneser-Ney's lower orders do not say how often a history
occurs) until the file is small enough. Perplexities of the held-out texts are printed.

    python scripts/make_language_model.py LEXICON OUT.arpa.gz --text FILE... --text FILE... \\
        --held-out FILE...

The packaged model's, in the folder of the speech data, with the manifests in `data`:

    python scripts/make_language_model.py lexicon.txt lm.arpa.gz --max-megabytes 10 \\
        --text text/books.txt.xz \\
        --text ljspeech/sentences.csv --exclude ljspeech/utterances.tsv \\
        --text data/speechocean762_train.jsonl.gz --text data/librispeech-mini_train.jsonl.gz \\
        --text data/fsdd_train.jsonl.gz \\
        --held-out data/speechocean762_dev.jsonl.gz data/librispeech-mini_dev.jsonl.gz

A FILE is a manifest (.jsonl.gz), a table with a `transcript` column (.tsv), lines whose last
field after `|` is a sentence (.csv), or plain sentences a line; .xz and .gz are unpacked.
"""

import argparse
import csv
import gzip
import lzma
import math
import sys
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from kneser_ney import (
    END,
    START,
    UNKNOWN,
    Floats,
    Order,
    backoffs,
    estimate,
    keep,
    mix,
    probabilities,
    prune,
)
from numpy.typing import NDArray

from asr.arpa import load_kenlm
from asr.data import read_manifest
from asr.errors import AsrError, DataError
from asr.files import replacing
from asr.lexicon import Lexicon
from asr.text import normalize

MARKS = ("<unk>", "<s>", "</s>")
_NEVER = -99.0  # ARPA's log10 of zero
_BYTES_A_GRAM = 7.0  # first guess of what an n-gram takes in the gzipped file
_LEAST = 0.01  # weight that a text has at least, however little the held-out ones are like it


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
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as lines:
            if kind == ".tsv":
                for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                    if row.get("transcript") is None:
                        raise DataError(f"{path}: expected a transcript in each row, got {row}")
                    yield normalize(row["transcript"])
            else:
                for line in lines:
                    yield normalize(line.rsplit("|", 1)[-1] if kind == ".csv" else line)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
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


def mixture_weights(held_out: Sequence[Floats]) -> Floats:
    """Weights of K models by expectation-maximisation; one array [K, words] of p(w | h) a text."""
    models = len(held_out[0])
    weights = np.full(models, 1 / models)
    for _ in range(100):
        joint = [weights[:, None] * prob for prob in held_out]
        weights = np.mean([(part / part.sum(0)).mean(1) for part in joint], axis=0)
        weights = np.maximum(weights, _LEAST)
        weights /= weights.sum()
    return weights


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


def write_arpa(path: Path, orders: Sequence[Order], vocabulary: Sequence[str]) -> None:
    """Write a model as gzipped ARPA; log10 with three decimals."""
    header = "".join(f"ngram {n}={len(order.keys)}\n" for n, order in enumerate(orders, 1))
    with (
        path.open("wb") as raw,
        # No name and no time in its header, so that the same model is the same bytes.
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as file,
    ):
        file.write(f"\\data\\\n{header}".encode())
        for n in range(1, len(orders) + 1):
            file.write(f"\n\\{n}-grams:\n".encode())
            file.write("".join(_lines(n, orders, vocabulary)).encode())
        file.write(b"\n\\end\\\n")


def _lines(n: int, orders: Sequence[Order], vocabulary: Sequence[str]) -> Iterator[str]:
    order = orders[n - 1]
    with np.errstate(divide="ignore"):
        probs = np.maximum(np.log10(order.prob), _NEVER)
    longer = backoffs(order, orders[n]) if n < len(orders) else np.ones(len(order.keys))
    size = np.uint64(len(vocabulary))
    keys = order.keys
    grams = [""] * len(keys)
    for _ in range(n):  # from the last word to the first
        words = [vocabulary[index] for index in (keys % size).tolist()]
        grams = [f"{word} {gram}" for word, gram in zip(words, grams, strict=True)]
        keys = keys // size
    for prob, gram, backoff in zip(probs.tolist(), grams, np.log10(longer).tolist(), strict=True):
        tail = f"\t{backoff:.3f}" if backoff else ""
        yield f"{prob:.3f}\t{gram.rstrip()}{tail}\n"


def perplexity(
    path: Path, vocabulary: Sequence[str], sentences: Iterable[str]
) -> tuple[float, int]:
    """Perplexity a known word or end of sentence, and the number of unknown words."""
    ids = {word: index for index, word in enumerate(vocabulary)}
    model = load_kenlm(path, tuple(vocabulary))
    total, words, unknown = 0.0, 0, 0
    for sentence in filter(None, sentences):
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lexicon", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--text", type=Path, nargs="+", action="append", required=True, metavar="FILE"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        help="sentences to leave out of the texts",
    )
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], metavar="FILE", help="to weigh by"
    )
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--max-megabytes", type=float, default=10.0)
    options = parser.parse_args(arguments)
    if len(options.text) > 1 and not options.held_out:
        parser.error("several --text are weighed by --held-out texts: give at least one")
    vocabulary = [*MARKS, *sorted(Lexicon.read(options.lexicon).words())]
    if options.order < 2:
        raise DataError(f"--order {options.order}: expected at least 2, pairs of words")
    if len(vocabulary) ** options.order >= 2**64:
        raise DataError(f"--order {options.order}: too long for {len(vocabulary)} words; make it 3")
    excluded = {sentence for path in options.exclude for sentence in read_sentences(path)}

    def read(paths: Sequence[Path], excluded: Container[str] = ()) -> NDArray[np.int64]:
        sentences = (sentence for path in paths for sentence in read_sentences(path))
        tokens = encode((text for text in sentences if text not in excluded), vocabulary)
        if not (tokens > END).any():
            names = ", ".join(str(path) for path in paths)
            raise DataError(f"{names}: expected sentences with words of the lexicon, found none")
        return tokens

    models = []
    for paths in options.text:
        tokens = read(paths, excluded)
        words, unknown = int((tokens > END).sum()), int((tokens == UNKNOWN).sum())
        names = ", ".join(str(path) for path in paths)
        print(f"{names}: {words + unknown} words, {unknown} not in the lexicon")
        models.append(estimate(tokens, options.order, len(vocabulary)))
    orders = models[0]
    held_out = [read([path]) for path in options.held_out]
    if len(models) > 1:
        weights = mixture_weights(
            [np.stack([probabilities(model, text) for model in models]) for text in held_out]
        )
        print(f"weights: {', '.join(f'{weight:.3f}' for weight in weights)}")
        orders = mix(models, weights.tolist())
    make(orders, vocabulary, options.out, options.max_megabytes)
    for path in options.held_out:
        value, unknown = perplexity(options.out, vocabulary, read_sentences(path))
        print(f"{path}: perplexity {value:.1f}, {unknown} unknown words")


def make(orders: Sequence[Order], vocabulary: Sequence[str], out: Path, megabytes: float) -> None:
    """Write the largest pruned model whose file has at most `megabytes`, or nothing."""
    bytes_a_gram = _BYTES_A_GRAM
    everything = sum(len(order.keys) for order in orders)
    tried: set[int] = set()  # n-grams that cost alike go together: some numbers cannot be had
    with replacing(out) as partial:
        while True:
            grams = min(everything, 0.99 * megabytes * 1e6 / bytes_a_gram)
            threshold = threshold_for(orders, grams)
            pruned = keep(orders, prune(orders, threshold))
            write_arpa(partial, pruned, vocabulary)
            size = partial.stat().st_size
            counts = [len(order.keys) for order in pruned]
            count = sum(counts)
            print(f"{out}: {size / 1e6:.2f} MB, n-grams {counts}, threshold {threshold:.2e}")
            fits = size <= megabytes * 1e6
            full = size > 0.95 * megabytes * 1e6 or count >= 0.999 * everything or count in tried
            if fits and full:
                return
            if not fits and count == len(vocabulary):
                raise DataError(
                    f"{out}: {size / 1e6:.3f} MB with single words alone: allow it more"
                )
            tried.add(count)
            bytes_a_gram = size / count


if __name__ == "__main__":
    try:
        main()
    except AsrError as error:
        sys.exit(f"make_language_model: {error}")
