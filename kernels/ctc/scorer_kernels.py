"""`NGram`, `WordNGram` and `Hotwords` as Triton functions over their tables, for the beam search.

They are `NGram.step`, `WordNGram.spell` for one option, and `Hotwords.step`. Where a lane is not
`wanted`, nothing is loaded and what comes back says nothing.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any, NamedTuple

import triton
import triton.language as tl

_NEVER = tl.constexpr(float("-inf"))


class NGramTables(NamedTuple):
    """An `NGram`'s fields."""

    words: Any
    keys: Any
    log_probs: Any
    targets: Any
    backoffs: Any
    shorter: Any


class TreeTables(NamedTuple):
    """A `WordNGram`'s fields."""

    keys: Any
    children: Any
    words: Any
    goes_on: Any
    promises: Any


class HotwordTables(NamedTuple):
    """A `Hotwords`' fields."""

    after: Any
    complete: Any
    begun: Any


class Sizes(NamedTuple):
    """Of the tables. They are no part of them: integers of 1 in a tuple break Triton 3.6."""

    arcs: Any  # keys of the n-gram
    model_words: Any  # W
    order: Any
    contexts: Any
    edges: Any  # keys of the tree
    tree_units: Any
    hotword_units: Any


class Scoring(NamedTuple):
    """What is added to the log-probabilities. The tables of an absent scorer are each None."""

    ngram: Any  # of units; of words where there is a tree
    tree: Any
    hotwords: Any
    lm_weight: Any
    token_score: Any
    word_score: Any


@triton.jit
def _find(keys, rows, key, wanted):
    """Row of `key` in ascending keys, and whether it is there: bisection."""
    low = tl.zeros(key.shape, tl.int32)  # the key, if it is there, is in low to low + left - 1
    left = rows
    while left > 1:
        half = left // 2
        middle = tl.load(keys + low + half, mask=wanted, other=0)
        low = tl.where(middle <= key, low + half, low)
        left -= half
    return low, wanted & (tl.load(keys + low, mask=wanted, other=-1) == key)


@triton.jit
def ngram_step(ngram, sizes, context, word, wanted):
    """Contexts after words, int64, and the words' scores."""
    score = tl.zeros(word.shape, tl.float32)
    after = tl.zeros(word.shape, tl.int64)
    for _ in range(sizes.order):
        row, found = _find(ngram.keys, sizes.arcs, context * sizes.model_words + word, wanted)
        score += tl.load(ngram.log_probs + row, mask=found, other=0.0)
        after = tl.load(ngram.targets + row, mask=found, other=0) + tl.where(found, 0, after)
        wanted = wanted & (found == 0)
        score += tl.load(ngram.backoffs + context, mask=wanted, other=0.0)
        context = tl.load(ngram.shorter + context, mask=wanted, other=0)
    return after, score


@triton.jit
def unit_step(ngram, sizes, context, unit, wanted):
    """Contexts after units, int64, and the units' scores."""
    word = tl.load(ngram.words + unit, mask=wanted, other=0)
    return ngram_step(ngram, sizes, context, word, wanted)


@triton.jit
def spell(tree, ngram, sizes, state, unit, option, wanted, R: tl.constexpr):
    """States after units that are taken in a way, scores, and words that end, -1 for none."""
    node = state // sizes.contexts
    context = state % sizes.contexts
    row, wanted = _find(tree.keys, sizes.edges, node * sizes.tree_units + unit, wanted)
    child = tl.load(tree.children + row, mask=wanted, other=0)
    within = wanted & (option == 0)
    within = within & (tl.load(tree.goes_on + child, mask=within, other=0) != 0)
    place = child * (R - 1) + option - 1
    word = tl.load(tree.words + place, mask=wanted & (option > 0), other=-1)
    ended = word >= 0
    spoken = tl.load(ngram.words + word, mask=ended, other=0)
    after, score = ngram_step(ngram, sizes, context, spoken, ended)
    score = tl.where(within, tl.load(tree.promises + child, mask=within, other=0.0), score)
    score -= tl.load(tree.promises + node, mask=wanted, other=0.0)
    score = tl.where(within | ended, score, _NEVER)
    return tl.where(within, child * sizes.contexts + context, after), score, word.to(tl.int32)


@triton.jit
def hotword_step(hotwords, sizes, node, unit, wanted):
    """Nodes after units, int64, and what is added to the score."""
    place = node * sizes.hotword_units + unit
    after = tl.load(hotwords.after + place, mask=wanted, other=0)
    gain = tl.load(hotwords.complete + after, mask=wanted, other=0.0)
    gain += tl.load(hotwords.begun + after, mask=wanted, other=0.0)
    return after, gain - tl.load(hotwords.begun + node, mask=wanted, other=0.0)
