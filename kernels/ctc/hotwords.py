"""Sequences of units that are expected, as a `Scorer` that favours hypotheses with them."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor


class Hotwords:
    """Adds `score` for each unit of each occurrence of a hotword.

    A hypothesis is given its bonus unit by unit while it spells a hotword, so that it stays in
    the beam, and loses what was given when it departs from all of them before one is complete.
    In the end only complete occurrences count; those that overlap count each.

    A state is a node of the tree of hotwords, 0 its root, followed as in Aho and Corasick 1975.

    Args:
        sequences: units of each hotword, without the blank. Where a hotword must be a whole word,
            give it with the unit that separates or begins words.
        num_units: V.
        score: added for a unit, natural logarithm, as the log-probabilities have.

    Raises:
        ValueError: no sequence, an empty one, or a unit outside the vocabulary.
    """

    start = 0

    def __init__(self, sequences: Sequence[Sequence[int]], num_units: int, score: float) -> None:
        children: list[dict[int, int]] = [{}]
        depths, ends = [0], [False]
        if not sequences:
            raise ValueError("Hotwords: sequences must hold at least one hotword, got none")
        for sequence in sequences:
            if not sequence:
                raise ValueError("Hotwords: each sequence must have units, got an empty one")
            node = 0
            for unit in sequence:
                if not 0 <= unit < num_units:
                    raise ValueError(
                        f"Hotwords: units must be from 0 to V - 1 = {num_units - 1}, got {unit}"
                    )
                if unit not in children[node]:
                    children[node][unit] = len(children)
                    children.append({})
                    depths.append(depths[node] + 1)
                    ends.append(False)
                node = children[node][unit]
            ends[node] = True
        self._tables(children, depths, ends, num_units, score)

    def _tables(
        self,
        children: list[dict[int, int]],
        depths: list[int],
        ends: list[bool],
        num_units: int,
        score: float,
    ) -> None:
        after = torch.zeros(len(children), num_units, dtype=torch.int64)
        complete = [0] * len(children)  # units of the hotwords that end at a node
        suffix = [0] * len(children)  # longest proper suffix that is a node
        queue = deque([0])
        while queue:  # nodes by their depth, so that a suffix is finished before
            node = queue.popleft()
            complete[node] = complete[suffix[node]] + depths[node] * ends[node]
            after[node] = after[suffix[node]]
            for unit, child in children[node].items():
                suffix[child] = int(after[node, unit])  # where the suffix of `node` leads
                after[node, unit] = child
                queue.append(child)
        begun = [depth if below else 0 for depth, below in zip(depths, children, strict=True)]
        self.after = after  # [nodes, V]
        self.complete = score * torch.tensor(complete, dtype=torch.float32)  # [nodes]
        self.begun = score * torch.tensor(begun, dtype=torch.float32)  # [nodes], given on credit

    def to(self, device: str | torch.device) -> "Hotwords":
        """The same on another device."""
        moved = object.__new__(Hotwords)
        for name, table in vars(self).items():
            setattr(moved, name, table.to(device))
        return moved

    def step(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """States after `units`, and what is added to the score; all of one shape."""
        after = self.after[states, units]
        return after, self.complete[after] + self.begun[after] - self.begun[states]

    def finish(self, states: Tensor) -> Tensor:
        """What is taken back where an utterance ends within a hotword."""
        return -self.begun[states]
