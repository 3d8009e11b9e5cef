"""Error rates: the edit distance between reference and hypothesis over the reference's length."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class ErrorRate:
    """Edit counts of a minimal alignment, summed over utterances; `a + b` pools two sets."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def hits(self) -> int:
        """Reference tokens that are right."""
        return self.reference_length - self.substitutions - self.deletions

    @property
    def rate(self) -> float:
        """Errors for each reference token; above 1 where insertions abound.

        With no reference token at all it is the number of insertions (jiwer's convention), so
        that silence recognised as silence scores 0 and the rate is always finite.
        """
        return self.errors / max(1, self.reference_length)

    def __add__(self, other: "ErrorRate") -> "ErrorRate":
        return ErrorRate(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


def error_rate(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]
) -> ErrorRate:
    """Pooled error rate of utterances given as lists of tokens (words, characters or phones).

    Either side may be empty. Alignment by jiwer (Levenshtein, all edits cost 1).

    Raises:
        ValueError: not as many hypotheses as references.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"error_rate: expected as many hypotheses as references, "
            f"got {len(hypotheses)} and {len(references)}"
        )
    output = _aligned(references, hypotheses)
    return ErrorRate(
        output.substitutions,
        output.deletions,
        output.insertions,
        reference_length=sum(len(tokens) for tokens in references),
    )


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """WER of texts whose words stand between white space; `error_rate` of their words."""
    return error_rate([t.split() for t in references], [t.split() for t in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """CER of texts: `error_rate` of their characters, single spaces between words counted."""
    return error_rate(
        [list(" ".join(t.split())) for t in references],
        [list(" ".join(t.split())) for t in hypotheses],
    )


def right_words(references: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> list[bool]:
    """Of all words of all hypotheses in turn, whether the reference has them there."""
    right = [[False] * len(words) for words in hypotheses]
    output = _aligned([text.split() for text in references], hypotheses)
    for chunks, flags in zip(output.alignments, right, strict=True):
        for chunk in chunks:
            if chunk.type == "equal":
                size = chunk.hyp_end_idx - chunk.hyp_start_idx
                flags[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * size
    return [flag for flags in right for flag in flags]


def _aligned(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]
) -> jiwer.WordOutput:
    return jiwer.process_words(
        references, hypotheses, reference_transform=_tokens, hypothesis_transform=_tokens
    )


def _tokens(utterances: Sequence[Sequence[str]]) -> list[list[str]]:
    # jiwer's hook for splitting text, which has been done; it insists on lists.
    return [list(tokens) for tokens in utterances]
