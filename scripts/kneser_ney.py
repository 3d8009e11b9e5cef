"""N-gram models as arrays: Kneser-Ney estimates, mixtures, what leaving an n-gram out costs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNKNOWN, START, END = 0, 1, 2

Keys = NDArray[np.uint64]  # n-grams as numbers in base V, first word first
Floats = NDArray[np.float64]


@dataclass
class Order:
    """The n-grams of one length, sorted, with what is known of each."""

    keys: Keys
    prob: Floats  # p(w | h), interpolated
    frequency: Floats  # occurrences a word of text
    context: NDArray[np.int64]  # place of the first n-1 words in the order below
    suffix: NDArray[np.int64]  # place of the last n-1 words in the order below
    loss: Floats  # relative entropy that leaving this n-gram out would cost


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
        tokens: [T] word numbers, each sentence within START and END.
        order: longest n-gram; at least 2.
        size: number of words V, marks counted; V ** order must be below 2 ** 64.
    """
    keys, raw, counts = _count(tokens, 1, False, size)
    discount = discounts(counts)[np.minimum(counts, 3)]
    prob = np.full(size, discount.sum() / counts.sum() / (size - 1))
    prob[keys] += (counts - discount) / counts.sum()
    prob[START] = 0.0
    orders = [_words(prob, np.bincount(tokens, minlength=size) / len(tokens))]
    for n in range(2, order + 1):
        lower = orders[-1]
        keys, raw, counts = _count(tokens, n, n == order, size)
        context, suffix = _places(lower.keys, keys, size, n)
        discount = discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(context, counts)
        freed = np.bincount(context, discount)[context] / total[context]
        prob = (counts - discount) / total[context] + freed * lower.prob[suffix]
        orders.append(_longer(lower, keys, prob, raw / len(tokens), context, suffix))
    return orders


def mix(models: Sequence[Sequence[Order]], weights: Sequence[float]) -> list[Order]:
    """The n-grams of all models, each with the weighted mean of its probabilities in them."""
    parts = list(zip(models, weights, strict=True))
    known = [model[0].prob for model in models]  # what each says of the mixture's n-grams
    size = len(known[0])
    orders = [
        _words(
            sum(weight * model[0].prob for model, weight in parts),
            sum(weight * model[0].frequency for model, weight in parts),
        )
    ]
    for n in range(2, len(models[0]) + 1):
        lower = orders[-1]
        keys = np.unique(np.concatenate([model[n - 1].keys for model in models]))
        context, suffix = _places(lower.keys, keys, size, n)
        prob, frequency = np.zeros(len(keys)), np.zeros(len(keys))
        for i, (model, weight) in enumerate(parts):
            theirs, shorter = model[n - 1], model[n - 2]
            backoff = np.ones(len(lower.keys))
            backoff[np.searchsorted(lower.keys, shorter.keys)] = backoffs(shorter, theirs)
            own = backoff[context] * known[i][suffix]
            listed = np.searchsorted(keys, theirs.keys)
            own[listed] = theirs.prob
            known[i] = own
            prob += weight * own
            frequency[listed] += weight * theirs.frequency
        orders.append(_longer(lower, keys, prob, frequency, context, suffix))
    return orders


def probabilities(orders: Sequence[Order], tokens: NDArray[np.int64]) -> Floats:
    """p(w | h) of each known word and END of `tokens` [T], in order."""
    size = len(orders[0].keys)
    prob = orders[0].prob[tokens]
    for n, (shorter, order) in enumerate(itertools.pairwise(orders), 2):
        if not len(order.keys):
            break  # no sentence was as long
        keys, inside = _grams(tokens, n, size)
        context, has_context = _find(shorter.keys, keys // np.uint64(size))
        place, listed = _find(order.keys, keys)
        backed = prob[n - 1 :] * np.where(has_context, backoffs(shorter, order)[context], 1.0)
        longer = np.where(listed, order.prob[place], backed)
        prob[n - 1 :] = np.where(inside, longer, prob[n - 1 :])
    return prob[(tokens != UNKNOWN) & (tokens != START)]


def backoffs(shorter: Order, longer: Order) -> Floats:
    """What multiplies p(w | h without its first word) where h w is not listed, for each h."""
    contexts = len(shorter.keys)
    left = _left(longer.prob, longer.context, contexts)
    return left / _left(shorter.prob[longer.suffix], longer.context, contexts)


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


def keep(orders: Sequence[Order], kept: Sequence[NDArray[np.bool_]]) -> list[Order]:
    """The model without what `prune` leaves out."""
    smaller = [orders[0]]
    for n, (order, mask) in enumerate(zip(orders[1:], kept[1:], strict=True), 2):
        lower, keys = smaller[-1], order.keys[mask]
        context, suffix = _places(lower.keys, keys, len(orders[0].keys), n)
        smaller.append(
            Order(keys, order.prob[mask], order.frequency[mask], context, suffix, order.loss[mask])
        )
    return smaller


def _words(prob: Floats, frequency: Floats) -> Order:
    """The first order: every word is listed, and stays."""
    none = np.zeros(0, dtype=np.int64)
    return Order(np.arange(len(prob), dtype=np.uint64), prob, frequency, none, none, np.zeros(0))


def _longer(
    lower: Order,
    keys: Keys,
    prob: Floats,
    frequency: Floats,
    context: NDArray[np.int64],
    suffix: NDArray[np.int64],
) -> Order:
    loss = _loss(prob, lower.prob[suffix], lower.frequency[context], context)
    return Order(keys, prob, frequency, context, suffix, loss)


def _places(
    shorter: Keys, keys: Keys, size: int, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the first and of the last n - 1 words of n-grams among the shorter ones."""
    first, last = keys // np.uint64(size), keys % np.uint64(size ** (n - 1))
    return np.searchsorted(shorter, first), np.searchsorted(shorter, last)


def _find(listed: Keys, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Places of `keys` in `listed`, some place where they are not, and whether they are."""
    place = np.minimum(np.searchsorted(listed, keys), len(listed) - 1)
    return place, listed[place] == keys


def _grams(tokens: NDArray[np.int64], n: int, size: int) -> tuple[Keys, NDArray[np.bool_]]:
    """Every n words in a row, and whether all are known and of one sentence; [T - n + 1] each."""
    if len(tokens) < n:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.bool_)
    words = np.lib.stride_tricks.sliding_window_view(tokens, n)
    keys = np.zeros(len(words), dtype=np.uint64)
    for column in words.T:
        keys = keys * np.uint64(size) + column.astype(np.uint64)
    return keys, (words != UNKNOWN).all(1) & (words[:, 1:] != START).all(1)


def _count(
    tokens: NDArray[np.int64],  # [T]
    order: int,
    highest: bool,
    size: int,
) -> tuple[Keys, NDArray[np.int64], NDArray[np.int64]]:
    """Sorted n-grams of one length without unknown words: keys, occurrences, adjusted counts.

    The adjusted count of Kneser-Ney is the number of different words that precede the n-gram;
    n-grams of the highest order, and those at the start of a sentence, are counted as they are.
    """
    keys, inside = _grams(tokens, order, size)
    starting = tokens[: len(keys)] == START
    inside &= ~starting if order == 1 else True
    unique, raw = np.unique(keys[inside], return_counts=True)
    if highest:
        return unique, raw, raw
    follows = inside & ~starting
    follows[:1] = False
    before = tokens[np.nonzero(follows)[0] - 1].astype(np.uint64)
    power = np.uint64(size**order)
    different = np.unique(before * power + keys[follows]) % power
    preceded, adjusted = np.unique(different, return_counts=True)
    counts = raw.copy()
    counts[np.searchsorted(unique, preceded)] = adjusted
    return unique, raw, counts


def _loss(prob: Floats, shorter: Floats, history: Floats, context: NDArray[np.int64]) -> Floats:
    """Relative entropy (nats a word) that leaving each n-gram out costs (Stolcke 1998, eq. 5)."""
    left = _left(prob, context)[context]
    left_shorter = _left(shorter, context)[context]
    backoff = left / left_shorter
    backoff_without = (left + prob) / (left_shorter + shorter)
    change = np.log(backoff_without) - np.log(backoff)
    return -history * (prob * (np.log(shorter * backoff_without) - np.log(prob)) + left * change)


def _left(prob: Floats, context: NDArray[np.int64], contexts: int = 0) -> Floats:
    """Probability that the n-grams of each context leave to the words they do not list."""
    return np.maximum(1 - np.bincount(context, prob, minlength=contexts), 1e-9)
