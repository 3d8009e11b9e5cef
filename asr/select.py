"""Which utterances can be trained on; every other one is named with the reason."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from asr.config import Config
from asr.data import Utterance
from asr.features import FilterBank
from asr.model import AcousticModel
from asr.tokenizer import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Utterances with their targets, those that cannot be trained on left out."""

    utterances: list[Utterance]
    targets: list[list[int]]
    excluded: list[tuple[str, str]]  # id, reason

    @property
    def seconds(self) -> float:
        """Duration of all utterances."""
        return sum(utterance.seconds for utterance in self.utterances)

    @property
    def checksum(self) -> int:
        """Of what batches are planned from: names, durations, targets; never 0."""
        lines = zip(self.utterances, self.targets, strict=True)
        told = "\n".join(f"{u.id}\t{u.seconds}\t{target}" for u, target in lines)
        return zlib.crc32(told.encode(errors="surrogateescape")) or 1


def required_frames(target: Sequence[int]) -> int:
    """Frames that CTC needs for `target`: one a unit, and a blank between equal neighbours."""
    return len(target) + sum(a == b for a, b in pairwise(target))


def select(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    model: AcousticModel,
    filter_bank: FilterBank,
    config: Config,
    speed: float = 1.0,
) -> Corpus:
    """Encode transcripts; leave out what is too short, too long, or cannot be aligned.

    `speed` is the fastest that the utterances will be played.
    """
    corpus = Corpus([], [], [])
    limit = config.data
    for utterance in utterances:
        reason = ""
        target = tokenizer.encode(utterance.text)
        samples = torch.tensor(int(utterance.seconds / speed * config.features.sample_rate))
        frames = int(model.output_lengths(filter_bank.frames(samples)))
        if not target:
            reason = "empty transcript"
        elif not limit.min_seconds <= utterance.seconds <= limit.max_seconds:
            reason = (
                f"{utterance.seconds:.2f} s is outside {limit.min_seconds} to {limit.max_seconds} s"
            )
        elif frames < required_frames(target):
            reason = f"{frames} output frames are fewer than the {required_frames(target)} needed"
        if reason:
            corpus.excluded.append((utterance.id, reason))
        else:
            corpus.utterances.append(utterance)
            corpus.targets.append(target)
    return corpus
