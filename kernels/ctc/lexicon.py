"""An n-gram model of words, reached through their spellings in units."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.ctc.ngram import NGram


@dataclass(frozen=True)
class WordNGram:
    """Words spelled in units, with an n-gram model of the words: a `Speller` for the search.

    A state is a node of the tree of spellings and a context of the model. The next unit leads to
    a child of the node, where a word may end (the first of them, the second, ...) or not
    (option 0). Within a word, scores are those of the likeliest word that may still come of it,
    by its 1-gram; where it ends they are made up for, so that words' scores are the model's.
    """

    model: NGram  # its units are the words
    num_units: int  # V
    keys: Tensor  # [E] int64, ascending: node * V + unit
    children: Tensor  # [E] int64
    words: Tensor  # [nodes, H] int64, words that end here, -1 where there are no more
    goes_on: Tensor  # [nodes] bool, has children
    promises: Tensor  # [nodes] float32, largest 1-gram score below; 0 at the root

    @classmethod
    def build(
        cls,
        model: NGram,
        spellings: Iterable[tuple[int, Sequence[int]]],
        num_units: int,
        homophones: int = 6,
    ) -> "WordNGram":
        """Lay out the tree.

        Args:
            model: an n-gram model whose units are words.
            spellings: words of `model`, by number, each with units; a word may come again.
            num_units: V.
            homophones: words with one spelling that are kept, the likeliest.

        Raises:
            ValueError: there are no spellings, one is empty or holds a unit outside the
                vocabulary, or a word is not the model's.
        """
        num_words = len(model.words)
        every = torch.arange(num_words, device=model.words.device)
        scores = model.step(torch.zeros_like(every), every)[1].tolist()
        tree: list[dict[int, int]] = [{}]
        ends: list[list[int]] = [[]]
        promises = [0.0]
        for word, units in spellings:
            if not 0 <= word < num_words:
                raise ValueError(
                    f"WordNGram: words must be from 0 to {num_words - 1}, the model's, got {word}"
                )
            if not units or not all(0 <= unit < num_units for unit in units):
                raise ValueError(
                    f"WordNGram: spellings must hold units from 0 to V - 1 = {num_units - 1}, "
                    f"got {list(units)} for word {word}"
                )
            node = 0
            for unit in units:
                if unit not in tree[node]:
                    tree[node][unit] = len(tree)
                    tree.append({})
                    ends.append([])
                    promises.append(scores[word])
                node = tree[node][unit]
                promises[node] = max(promises[node], scores[word])
            ends[node].append(word)
        if len(tree) == 1:
            raise ValueError("WordNGram: spellings must hold at least one word, got none")
        most = max(1, min(homophones, max(map(len, ends))))
        kept = [sorted(set(words), key=lambda word: -scores[word])[:most] for words in ends]
        edges = sorted(
            (node * num_units + unit, child)
            for node, below in enumerate(tree)
            for unit, child in below.items()
        )
        return cls(
            model,
            num_units,
            keys=torch.tensor([key for key, _ in edges]),
            children=torch.tensor([child for _, child in edges]),
            words=torch.tensor([words + [-1] * (most - len(words)) for words in kept]),
            goes_on=torch.tensor([bool(below) for below in tree]),
            promises=torch.tensor(promises, dtype=torch.float32),
        ).to(model.words.device)

    @property
    def start(self) -> int:
        """State before the first unit."""
        return self.model.start

    @property
    def options(self) -> int:
        """Ways to take a unit: within a word, or as the end of one of the words it may end."""
        return 1 + self.words.shape[1]

    def to(self, device: str | torch.device) -> "WordNGram":
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if not isinstance(value, int)
        }
        return replace(self, **moved)

    def spell(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [..., R] after `units` [...], scores, and words that end, -1 for none.

        An option that is not there has score -inf.
        """
        contexts = len(self.model.backoffs)
        node, context = states // contexts, states % contexts
        key = node * self.num_units + units
        row = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        found = self.keys[row] == key
        child = self.children[row]
        words = self.words[child]  # [..., H]
        after, scores = self.model.step(
            context[..., None].expand_as(words).contiguous(), words.clamp(min=0)
        )
        ended = scores.masked_fill((words < 0) | ~found[..., None], -torch.inf)
        within = self.promises[child].masked_fill(~(found & self.goes_on[child]), -torch.inf)
        scores = torch.cat([within[..., None], ended], -1) - self.promises[node][..., None]
        after = torch.cat([(child * contexts + context)[..., None], after], -1)
        return after, scores, torch.cat([torch.full_like(words[..., :1], -1), words], -1)

    def finish(self, states: Tensor) -> Tensor:
        """Scores of ending here; -inf within a word."""
        contexts = len(self.model.backoffs)
        ended = self.model.finish(states % contexts)
        return ended.masked_fill(states >= contexts, -torch.inf)
