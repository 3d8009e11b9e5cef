"""Prefix beam search as operators of fixed shape, some 200 a frame for any number of utterances.

Nothing is read back by the host, so that a GPU's queue stays full. The shapes are those of B
utterances, K prefixes, C units that may extend a prefix, and R ways to spell with a unit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from kernels.ctc.beam import Scorer, Speller

_NEVER = -torch.inf
_MIX = 6364136223846793005  # odd: multiplication by it permutes the 64-bit integers


class _Beam(NamedTuple):
    """Prefixes after a frame, each tensor [B, K]; a slot without a prefix has scores of -inf.

    A prefix has two states, numbered 2k and 2k + 1 for prefix k: its paths end in a blank, or in
    its last unit.
    """

    at_blank: Tensor  # log-probability of the paths that end in a blank
    at_label: Tensor  # of those that end in the prefix' last unit
    last: Tensor  # last unit; the blank for the empty prefix
    option: Tensor  # how the speller took it
    word: Tensor  # that ended with it, or -1
    key: Tensor  # hash of the units and options
    above: Tensor  # the same without the last one
    extra: Tensor  # what scorers, token_score and word_score gave so far
    spelled: Tensor  # state of the speller
    states: tuple[Tensor, ...]  # of each scorer


class _Extension(NamedTuple):
    """Prefixes with one more unit, each tensor [B, K, C, R]; named as in `_Beam`."""

    unit: Tensor
    option: Tensor
    word: Tensor
    extra: Tensor
    spelled: Tensor
    states: list[Tensor]


class Found(NamedTuple):
    """The beam after the last frame, fields as in `_Beam`, and how it came about."""

    at_blank: Tensor
    at_label: Tensor
    extra: Tensor
    spelled: Tensor
    states: tuple[Tensor, ...]
    ways: Tensor  # [T, B, 2K] into each state, see `Search._step`
    words: Tensor  # [T, B, K]


class FreeSpelling:
    """A `Speller` without words: any unit may follow."""

    start = 0
    options = 1

    def spell(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One option, which costs nothing and ends no word."""
        after = torch.zeros_like(states)[..., None]
        return after, torch.zeros_like(after, dtype=torch.float32), after - 1

    def finish(self, states: Tensor) -> Tensor:
        """Nothing to pay."""
        return torch.zeros_like(states, dtype=torch.float32)


@dataclass(frozen=True)
class Search:
    """What stays the same from frame to frame."""

    beam: int  # K
    units: int  # C
    blank: int
    scorers: "Sequence[Scorer]"
    weights: Sequence[float]
    speller: "Speller"
    speller_weight: float
    token_score: float
    word_score: float
    combine: Callable[[Tensor, Tensor], Tensor]  # of the probabilities of two sets of paths

    def __call__(
        self,
        log_probs: Tensor,  # [T, B, V] float32 or float64
        lengths: Tensor,  # [B] int64
        nbest: int,
    ) -> tuple[Tensor, ...]:
        """Fields of `Hypotheses`."""
        V = log_probs.shape[-1]
        found = self._through(log_probs, lengths)
        ctc_scores = self.combine(found.at_blank, found.at_label)
        scores = ctc_scores + found.extra
        scores = scores + _weighted(self.speller_weight, self.speller.finish(found.spelled))
        for scorer, weight, states in zip(self.scorers, self.weights, found.states, strict=True):
            scores = scores + weight * scorer.finish(states)
        # Where no prefix ends with a word, the best that does not is better than nothing.
        unfinished = scores == _NEVER
        ranks = (ctc_scores + found.extra).where(unfinished, scores)
        best = ranks.argsort(1, descending=True)
        finished_first = unfinished.gather(1, best).int().argsort(dim=1, stable=True)
        best = best.gather(1, finished_first)[:, :nbest]
        ranks = ranks.gather(1, best)
        state = _best_state(found.at_blank, found.at_label).gather(1, best)
        spoken, ended = self._walk(found, lengths, state, V)
        trace = self._tokens(spoken, ended, ranks == _NEVER)
        scores = scores.gather(1, best)
        return *trace, scores, ctc_scores.gather(1, best)

    def _through(self, log_probs: Tensor, lengths: Tensor) -> Found:
        """All frames."""
        T, B, V = log_probs.shape
        # Past the end nothing is heard but certain blanks, which change no score and no prefix.
        ended = torch.arange(T, device=lengths.device)[:, None] >= lengths
        silence = log_probs.new_full((V,), _NEVER)
        silence[self.blank] = 0.0
        log_probs = silence.where(ended[..., None], log_probs)
        beam = self._empty(log_probs)
        ways = lengths.new_empty(T, B, 2 * self.beam)
        words = lengths.new_empty(T, B, self.beam)
        for t in range(T):
            beam, ways[t] = self._step(beam, log_probs[t])
            words[t] = beam.word
        return Found(
            beam.at_blank, beam.at_label, beam.extra, beam.spelled, beam.states, ways, words
        )

    def _empty(self, log_probs: Tensor) -> _Beam:
        """The empty prefix in the first slot."""
        at_label = log_probs.new_full((log_probs.shape[1], self.beam), _NEVER)
        at_blank = at_label.clone()
        at_blank[:, 0] = 0.0
        key = torch.zeros_like(at_label, dtype=torch.int64)
        starts = tuple(torch.full_like(key, scorer.start) for scorer in self.scorers)
        return _Beam(
            at_blank,
            at_label,
            last=torch.full_like(key, self.blank),
            option=key,
            word=key - 1,
            key=key,
            above=key,
            extra=torch.zeros_like(at_label),
            spelled=torch.full_like(key, self.speller.start),
            states=starts,
        )

    def _step(self, beam: _Beam, frame: Tensor) -> tuple[_Beam, Tensor]:  # frame [B, V]
        """The beam after a frame, and the way into each of its states [B, 2K].

        A way is the state before * V + the unit that the prefix was extended by, or the blank.
        """
        K, C, V = self.beam, self.units, frame.shape[1]
        total = self.combine(beam.at_blank, beam.at_label)
        best = _best_state(beam.at_blank, beam.at_label)
        slots = torch.arange(K, device=frame.device).expand_as(best)

        # Prefixes that stay what they are; one whose parent is in the beam is entered from there.
        parent, has_parent = self._parents(beam, total)
        heard = frame.gather(1, beam.last)
        again = beam.last.gather(1, parent) == beam.last
        entered = beam.at_blank.gather(1, parent).where(again, total.gather(1, parent)) + heard
        entered = entered.where(has_parent, _NEVER)
        held = beam.at_label + heard
        kept_blank = total + frame[:, self.blank, None]
        kept_label = self.combine(held, entered)
        kept_way = ((2 * slots + 1) * V + self.blank).where(
            held >= entered, (2 * parent).where(again, best.gather(1, parent)) * V + beam.last
        )

        # Prefixes that are new: extended by a unit, in each of R ways, and not in the beam yet.
        without_blank = frame.clone()
        without_blank[:, self.blank] = _NEVER
        heard, units = without_blank.topk(C)
        more = self._extend(beam, units)
        R = self.speller.options
        rank = units.new_full((len(frame), V), C).scatter(
            1, units, torch.arange(C, device=units.device).expand_as(units)
        )
        known = rank.gather(1, beam.last)
        known = ((parent * C + known) * R + beam.option).where(has_parent & (known < C), K * C * R)
        again = more.unit == beam.last[..., None, None]  # [B, K, C, R], as all that follows
        before = beam.at_blank[..., None, None].where(again, total[..., None, None])
        new = F.pad((before + heard[:, None, :, None]).flatten(1), (0, 1))
        new = new.scatter(1, known, _NEVER)[:, :-1]
        new_way = (2 * slots[..., None, None]).where(again, best[..., None, None]) * V + more.unit

        ranked = torch.cat(
            [self.combine(kept_blank, kept_label) + beam.extra, new + more.extra.flatten(1)], 1
        )
        chosen = ranked.topk(K)[1]
        is_new = chosen >= K
        origin = ((chosen - K) // (C * R)).where(is_new, chosen)

        def pick(kept: Tensor, new: Tensor) -> Tensor:
            return torch.cat([kept, new.flatten(1)], 1).gather(1, chosen)

        last, option = pick(beam.last, more.unit), pick(beam.option, more.option)
        key = beam.key.gather(1, origin)
        after = _Beam(
            at_blank=kept_blank.gather(1, origin).masked_fill(is_new, _NEVER),
            at_label=pick(kept_label, new),
            last=last,
            option=option,
            word=pick(beam.word, more.word),
            key=_extended(key, last * R + option).where(is_new, key),
            above=key.where(is_new, beam.above.gather(1, origin)),
            extra=pick(beam.extra, more.extra),
            spelled=pick(beam.spelled, more.spelled),
            states=tuple(map(pick, beam.states, more.states)),
        )
        ways = [(best * V + self.blank).gather(1, origin), pick(kept_way, new_way)]
        return after, torch.stack(ways, -1).flatten(1)

    def _parents(self, beam: _Beam, total: Tensor) -> tuple[Tensor, Tensor]:
        """Slot of the prefix without its last unit, [B, K] int64, and whether there is one."""
        alive = total != _NEVER
        is_child = alive & (beam.last != self.blank)
        equal = (beam.above[:, :, None] == beam.key[:, None]) & alive[:, None]
        found, parent = (equal & is_child[..., None]).to(torch.uint8).max(-1)
        return parent, found.bool()

    def _extend(self, beam: _Beam, units: Tensor) -> _Extension:
        """Each prefix with each of the units [B, C]."""
        K, R = self.beam, self.speller.options
        shape = (*units.shape[:1], K, self.units, R)
        units = units[:, None].expand(shape[:-1]).contiguous()
        spelled, score, word = self.speller.spell(
            beam.spelled[..., None].expand_as(units).contiguous(), units
        )
        gain = _weighted(self.speller_weight, score) + self.word_score * (word >= 0)
        extra = beam.extra[..., None, None] + self.token_score + gain
        states = []
        for scorer, weight, state in zip(self.scorers, self.weights, beam.states, strict=True):
            after, score = scorer.step(state[..., None].expand_as(units).contiguous(), units)
            extra = extra + weight * score[..., None]
            states.append(after[..., None].expand(shape))
        return _Extension(
            unit=units[..., None].expand(shape),
            option=torch.arange(R, device=units.device).expand(shape),
            word=word,
            extra=extra,
            spelled=spelled,
            states=states,
        )

    def _walk(self, found: Found, lengths: Tensor, state: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """Unit of each frame and word of the prefix there, [B, N, T], from states at the end."""
        T = len(found.ways)
        spoken = state.new_empty(*state.shape, T)
        ended = torch.empty_like(spoken)
        for t in range(T - 1, -1, -1):
            way = found.ways[t].gather(1, state)
            spoken[..., t] = way % V
            ended[..., t] = found.words[t].gather(1, state // 2)
            state = way // V
        return spoken, ended

    def _tokens(
        self, spoken: Tensor, ended: Tensor, none: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens, frames, words [B, N, T] and their numbers [B, N]."""
        is_token = (spoken != self.blank) & ~none[..., None]
        # Tokens first, in their order.
        frames = (~is_token).to(torch.uint8).argsort(dim=-1, stable=True)
        counts = is_token.sum(-1)
        inside = torch.arange(spoken.shape[-1], device=spoken.device) < counts[..., None]
        tokens = spoken.gather(-1, frames).where(inside, self.blank)
        completed = ended.gather(-1, frames).where(inside, -1)
        return tokens, frames.where(inside, 0), completed, counts


def _weighted(weight: float, score: Tensor) -> Tensor:
    """The product; what is impossible stays so, whatever the weight."""
    return (weight * score).masked_fill(score == _NEVER, _NEVER)


def _best_state(at_blank: Tensor, at_label: Tensor) -> Tensor:
    """The likelier state of each prefix, [B, K]."""
    slots = torch.arange(at_blank.shape[1], device=at_blank.device)
    return 2 * slots + (at_label > at_blank)


def _extended(key: Tensor, unit: Tensor) -> Tensor:
    """Hash of a prefix with one more unit; multiplication wraps around."""
    return (key ^ (key >> 29)) * _MIX + unit + 1
