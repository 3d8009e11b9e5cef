"""`ctc_beam_search`: the likeliest texts of a batch, with a language model and hotwords."""

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from kernels.backends import available_backends, triton_is_interpreted
from kernels.checks import Lengths, lengths_of
from kernels.choice import choose_backend
from kernels.context import moved, uncompiled
from kernels.ctc import beam_torch
from kernels.ctc.checks import check_backend, check_scores
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram


class Scorer(Protocol):
    """Scores a sequence of units from left to right; `NGram` and `Hotwords` are scorers.

    States are whole numbers, a function of the units so far. Tensors are on the device of the
    search, of any one shape; no method may wait for the device.
    """

    @property
    def start(self) -> int:
        """State before the first unit."""

    def step(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """States after `units`, int64, and the scores of `units`."""

    def finish(self, states: Tensor) -> Tensor:
        """Scores of ending here."""


class Speller(Protocol):
    """Spells words from left to right, and scores them; `WordNGram` is one.

    As a `Scorer`, but a unit may be taken in R ways, such as the end of one word or of another.
    """

    @property
    def start(self) -> int:
        """State before the first unit."""

    @property
    def options(self) -> int:
        """R."""

    def spell(self, states: Tensor, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, scores and words that end [..., R], from states and units [...].

        A score of -inf: no such way. A word of -1: none ends.
        """

    def finish(self, states: Tensor) -> Tensor:
        """Scores of ending here."""


class Hypotheses(NamedTuple):
    """The best texts of each utterance, best first; N of them, at most K and T units long.

    A place for which there was no text has score -inf and length 0. One that ends within a word
    of a `WordNGram` comes after those that do not, and has score -inf.
    """

    tokens: Tensor  # [B, N, T] int64; blank past the end
    frames: Tensor  # [B, N, T] int64, frame at which each token begins; 0 past the end
    words: Tensor  # [B, N, T] int64, the word that ends with each token, -1 for none
    lengths: Tensor  # [B, N] int64
    scores: Tensor  # [B, N] what the search maximised
    ctc_scores: Tensor  # [B, N] log-probability of the tokens, without the other scores


@uncompiled
@torch.no_grad()
def ctc_beam_search(
    log_probs: Tensor,
    lengths: Lengths,
    beam: int = 50,
    *,
    blank: int = 0,
    lm: Scorer | Speller | None = None,
    lm_weight: float = 1.0,
    token_score: float = 0.0,
    word_score: float = 0.0,
    hotwords: Scorer | None = None,
    nbest: int = 1,
    beam_tokens: int | None = None,
    log_add: bool = True,
    backend: str | None = None,
) -> Hypotheses:
    """Prefix beam search (Hannun et al. 2014) of a whole batch, on its device.

    The score of a text is log p(text | audio) + lm_weight * the language model's score, the end
    included, + token_score * number of tokens + word_score * number of words + the hotwords'
    score. After each frame the `beam` best prefixes are kept. Equal prefixes are one: their
    identity is a 64-bit hash of their units. Where `beam` and `beam_tokens` leave nothing out,
    the result is exact.

    Args:
        log_probs: [T, B, V], natural log-probabilities, any strides. float16 and bfloat16 are
            computed in float32.
        lengths: [B] integers, frames of each utterance, 0 to T.
        beam: prefixes kept after each frame, K.
        blank: unit that stands for no token.
        lm: scores units, such as an `NGram`, or words, such as a `WordNGram`, on the device of
            `log_probs`. Their scores are log10, as those of flashlight's KenLM: the same
            `lm_weight` does the same. With words, texts of the same units and other words are
            different hypotheses, and a text ends with a word.
        lm_weight: weight of `lm`.
        token_score: added for each token.
        word_score: added for each word of a `WordNGram`.
        hotwords: a further scorer, with weight 1, such as `Hotwords`.
        nbest: texts wanted for each utterance, N.
        beam_tokens: units by which a prefix may be extended, the likeliest of each frame; None:
            all. The last unit of a prefix that is in the beam may always come.
        log_add: a text's probability is the sum over its paths; False: that of the best path.
        backend: see `kernels.choose_backend`; here "torch", which takes any scorer, or "triton",
            which takes an `NGram`, a `WordNGram` and `Hotwords`; None: it where it can.

    Returns:
        Texts with scores and times. Times are of the best path (`log_add=False`), or of one that
        takes the likelier way in at each step. NaN reaches its own utterance alone.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value, a scorer is one of
            other than V units, or the backend does not take the scorers. `lengths` on a GPU is not
            looked at, as the host would have to wait; there more than T counts as T.
    """
    op = "ctc_beam_search"
    check_backend(op, backend)
    check_scores(op, "log_probs", log_probs, (3,))
    T, B, V = log_probs.shape
    if T < 1 or B < 1 or V < 2:
        raise ValueError(f"{op}: T and B must be at least 1, V at least 2, got {[T, B, V]}")
    if not 0 <= blank < V:
        raise ValueError(f"{op}: blank must be from 0 to V - 1 = {V - 1}, got {blank}")
    if beam < 1:
        raise ValueError(f"{op}: beam must be at least 1, got {beam}")
    if not 1 <= nbest <= beam:
        raise ValueError(f"{op}: nbest must be from 1 to beam = {beam}, got {nbest}")
    if beam_tokens is not None and beam_tokens < 1:
        raise ValueError(f"{op}: beam_tokens must be None or at least 1, got {beam_tokens}")
    _check_units(op, V, lm, "lm")
    _check_units(op, V, hotwords, "hotwords")
    lengths = lengths_of(op, lengths, T, B, least=0)
    search_class = _search_class(op, backend, log_probs, lm, hotwords, beam)
    speller: Speller = beam_torch.FreeSpelling()
    scorers: list[tuple[Scorer, float]] = []
    if hasattr(lm, "spell"):
        speller = cast(Speller, lm)
    elif lm is not None:
        scorers.append((lm, lm_weight))
    if hotwords is not None:
        scorers.append((hotwords, 1.0))
    search = search_class(
        beam=beam,
        units=min(beam_tokens or V, V - 1),
        blank=blank,
        scorers=[scorer for scorer, _ in scorers],
        weights=[weight for _, weight in scorers],
        speller=speller,
        speller_weight=lm_weight,
        token_score=token_score,
        word_score=word_score,
        combine=torch.logaddexp if log_add else torch.maximum,
    )
    wide = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    return Hypotheses(*search(wide, moved(lengths, log_probs.device), nbest))


def _check_units(op: str, V: int, scorer: Scorer | Speller | None, name: str) -> None:
    """Tables of another number of units would be read past their ends, or at wrong places."""
    match scorer:
        case NGram():
            known = len(scorer.words)
        case WordNGram():
            known = scorer.num_units
        case Hotwords():
            known = scorer.after.shape[1]
        case _:
            return
    if known != V:
        raise ValueError(f"{op}: {name} must score V = {V} units, got one of {known}")


def _search_class(
    op: str,
    backend: str | None,
    log_probs: Tensor,
    lm: Scorer | Speller | None,
    hotwords: Scorer | None,
    beam: int,
) -> type[beam_torch.Search]:
    """The backend's search; where it may choose, that of torch for what Triton does not take."""
    there = set(available_backends()) - {"reference"}
    if torch.version.hip:
        there -= {"triton"}  # whose compiler fails on the search there
    device, interpreted = log_probs.device.type, triton_is_interpreted()
    if choose_backend(backend, device, there, log_probs.dtype, interpreted) == "torch":
        return beam_torch.Search
    from kernels.ctc import beam_triton

    known, narrow = beam_triton.takes(lm, hotwords), beam <= beam_triton.MOST_BEAM
    if known and narrow:
        return beam_triton.Search
    if backend is None:
        return beam_torch.Search
    if not narrow:
        raise ValueError(
            f"{op}: backend 'triton' takes beams up to {beam_triton.MOST_BEAM}, got {beam}; "
            "use backend=None"
        )
    got = [type(scorer).__name__ for scorer in (lm, hotwords) if scorer is not None]
    raise ValueError(
        f"{op}: backend 'triton' takes an NGram or a WordNGram as lm, and Hotwords as hotwords, "
        f"got {' and '.join(got)}; use backend=None"
    )
