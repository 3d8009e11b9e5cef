"""Back-off n-gram models as tensors: batches of states are advanced on the device."""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

Words = tuple[int, ...]
_BEGIN, _END, _UNKNOWN = _SPECIALS = b"<s>", b"</s>", b"<unk>"
_NEVER = -100.0  # log10-probability of unknown words where a model does not say, as in KenLM


@dataclass(frozen=True)
class NGram:
    """An n-gram model of any order over the units of a network, a `Scorer` for `ctc_beam_search`.

    A state is a context: the longest suffix of what was said that the model knows and that
    matters for what comes. Its arcs are rows of one table, sorted by context * W + word; a word
    that is not among them costs the context's back-off weight, and is looked up in the context
    without its first word. Scores are log10-probabilities, float32, as in the file and in KenLM.
    """

    order: int  # N
    start: int  # context of an utterance's beginning
    end: int  # word that ends an utterance
    num_words: int  # W
    words: Tensor  # [V] int64, word of each unit
    keys: Tensor  # [A] int64, ascending: context * W + word
    log_probs: Tensor  # [A] float32
    targets: Tensor  # [A] int64, context after the arc
    backoffs: Tensor  # [C] float32
    shorter: Tensor  # [C] int64, the longest suffix that is a context; that of 0, (), is itself

    @classmethod
    def from_arpa(cls, path: str | Path, units: Sequence[str]) -> "NGram":
        """Read an ARPA file, gzipped where its name ends in `.gz`.

        Args:
            path: the file; its words are units.
            units: name of each unit, the blank too. Those that the model does not know are
                scored as its `<unk>`, or -100 where it has none; n-grams of other words are
                left out.

        Raises:
            ValueError: no such file, or not ARPA, or none of its words is a unit.
        """
        names = {name.encode(): index for index, name in enumerate(dict.fromkeys(units))}
        known = {**names, **{special: len(names) + i for i, special in enumerate(_SPECIALS)}}
        known[b"<UNK>"] = known[_UNKNOWN]
        try:
            ngrams = _read(Path(path), known)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{path}: expected an ARPA model, cannot read it: {error}") from None
        unknown, end = known[_UNKNOWN], known[_END]
        if not any((index,) in ngrams for index in names.values()):
            raise ValueError(f"{path}: expected an ARPA model of the units, got one of other words")
        ngrams.setdefault((unknown,), (_NEVER, 0.0))
        ngrams.setdefault((end,), (0.0, 0.0))  # a model that does not score the end
        spoken = [names[name.encode()] for name in units]
        words = [index if (index,) in ngrams else unknown for index in spoken]
        return _build(ngrams, words, known[_BEGIN], end, len(names) + len(_SPECIALS))

    def to(self, device: str | torch.device) -> "NGram":
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def step(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """States after `units` and the units' scores; all of one shape, int64 and float32."""
        return self._look_up(states, self.words[units])

    def finish(self, states: Tensor) -> Tensor:
        """Scores of an utterance that ends here, shaped as `states`."""
        return self._look_up(states, torch.full_like(states, self.end))[1]

    def _look_up(self, contexts: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.zeros_like(contexts, dtype=torch.float32)
        after = torch.zeros_like(contexts)
        missing = torch.ones_like(contexts, dtype=torch.bool)
        for _ in range(self.order):
            key = contexts * self.num_words + words
            row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
            found = self.keys[row] == key
            gain = self.log_probs[row].where(found, self.backoffs[contexts])
            scores = scores + gain.where(missing, 0.0)
            after = self.targets[row].where(missing & found, after)
            missing = missing & ~found
            contexts = self.shorter[contexts]
        return after, scores


def _read(path: Path, known: Mapping[bytes, int]) -> dict[Words, tuple[float, float]]:
    """N-grams of known words -> (log10-probability, log10 back-off weight)."""
    ngrams: dict[Words, tuple[float, float]] = {}
    listed = set()
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        lines = (line.split() for line in file)  # bytes: only ASCII's white space separates
        counts = _counts(lines)
        for order, count in enumerate(counts, 1):
            rows = 0
            for fields in lines:
                if not fields:
                    continue
                if fields[0].startswith(b"\\"):
                    break
                rows += 1
                if len(fields) - order not in (1, 2):
                    raise ValueError(f"a line of its {order}-grams has {len(fields)} fields")
                words = tuple(map(known.get, fields[1 : order + 1]))
                if None in words:
                    continue
                if order == 1:
                    listed.add(words[0])
                elif not listed.issuperset(words):
                    raise ValueError(f"a word of its {order}-grams is not among its 1-grams")
                log_prob = float(fields[0])
                if not log_prob <= 0:
                    raise ValueError(f"it has a log10-probability of {log_prob}")
                backoff = float(fields[-1]) if len(fields) == order + 2 else 0.0
                ngrams[cast(Words, words)] = log_prob, backoff
            if rows != count:
                raise ValueError(f"it promises {count} {order}-grams and has {rows}")
    return ngrams


def _counts(lines: Iterator[list[bytes]]) -> list[int]:
    r"""N-grams of each order, from the header; reads as far as `\1-grams:`."""
    counts: list[int] = []
    for fields in lines:
        if fields and fields[0] == b"\\1-grams:":
            if counts:
                return counts
            break
        if len(fields) >= 2 and fields[0] == b"ngram":
            counts.append(int(b"".join(fields[1:]).partition(b"=")[2]))
    raise ValueError("it has no \\data\\ with counts before \\1-grams:")


def _build(
    ngrams: dict[Words, tuple[float, float]], words: list[int], begin: int, end: int, W: int
) -> NGram:
    for prefix in {ngram[:-1] for ngram in ngrams} - ngrams.keys():
        _add_prefix(ngrams, prefix)
    order = max(map(len, ngrams))
    extended = {ngram[:-1] for ngram in ngrams}
    contexts: dict[Words, int] = {(): 0}
    for ngram, (_, backoff) in ngrams.items():
        if ngram in extended or (backoff and len(ngram) < order):
            contexts[ngram] = len(contexts)

    def context(said: Words) -> int:
        while said not in contexts:
            said = said[1:]
        return contexts[said]

    def after(ngram: Words) -> int:
        return context(ngram if len(ngram) < order else ngram[1:])

    keys = torch.tensor([contexts[ngram[:-1]] * W + ngram[-1] for ngram in ngrams])
    keys, rows = keys.sort()
    return NGram(
        order,
        start=context((begin,)),
        end=end,
        num_words=W,
        words=torch.tensor(words),
        keys=keys,
        log_probs=torch.tensor([p for p, _ in ngrams.values()], dtype=torch.float32)[rows],
        targets=torch.tensor([after(ngram) for ngram in ngrams])[rows],
        backoffs=torch.tensor(
            [ngrams[said][1] if said else 0.0 for said in contexts], dtype=torch.float32
        ),
        shorter=torch.tensor([context(said[1:]) for said in contexts]),
    )


def _add_prefix(ngrams: dict[Words, tuple[float, float]], prefix: Words) -> None:
    """A pruned model may lack the n-gram that a longer one begins with: add what it implies."""
    if prefix and prefix not in ngrams:
        _add_prefix(ngrams, prefix[:-1])
        ngrams[prefix] = (_score(ngrams, prefix), 0.0)


def _score(ngrams: Mapping[Words, tuple[float, float]], words: Words) -> float:
    """log10 p(last word | those before), Katz 1987."""
    if words in ngrams:
        return ngrams[words][0]
    return ngrams.get(words[:-1], (0.0, 0.0))[1] + _score(ngrams, words[1:])
