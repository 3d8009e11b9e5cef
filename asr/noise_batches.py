"""Batches of noise as long as speech is: what a network costs, without a corpus or a disk.

Durations follow LibriSpeech's roughly, and batches are planned as the trainer's.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from asr.config import Config
from asr.data import Batch, plan_batches

#: Seconds of an utterance, by the share of all that are no longer: the shape of LibriSpeech's
#: training parts as we remember it, with their mean of 12.3 s; not taken from the corpus.
QUANTILES = {
    0.0: 1.4,
    0.05: 3.3,
    0.1: 5.0,
    0.25: 10.7,
    0.5: 14.0,
    0.75: 15.3,
    0.9: 16.0,
    0.99: 16.8,
    1.0: 24.5,
}
MEAN_SECONDS = 12.3

#: Units that are said in a second, about.
RATES = {"subword": 4.0, "phoneme": 10.0, "character": 14.0}

#: How many there are; of subwords the recipe says it.
UNITS = {"phoneme": 40, "character": 39}


def noise_batches(config: Config, units: int, steps: int, pin: bool) -> list[Batch]:
    """At least so many batches, planned as an epoch's."""
    shift = config.features.frame_shift / 1000
    most = config.train.max_frames * shift  # seconds of a batch
    count = math.ceil(steps * most / MEAN_SECONDS)
    while True:
        seconds = durations(count)
        plan = plan_batches(
            seconds, config.augment.speeds, most, config.train.max_utterances, config.train.seed, 0
        )
        if len(plan) >= steps:
            break
        count *= 2
    return [
        noise(config, units, [seconds[entry.index] / entry.speed for entry in batch], pin)
        for batch in plan
    ]


def durations(count: int) -> list[float]:
    """Seconds of so many utterances, spread evenly over `QUANTILES`."""
    shares = (np.arange(count) + 0.5) / count
    seconds: list[float] = np.interp(shares, list(QUANTILES), list(QUANTILES.values())).tolist()
    return seconds


def noise(config: Config, units: int, seconds: Sequence[float], pin: bool) -> Batch:
    """A batch of such utterances, with transcripts that say nothing."""
    generator = torch.Generator().manual_seed(len(seconds))
    rate = config.features.sample_rate
    lengths = torch.tensor([round(rate * length) for length in seconds])
    spoken = torch.tensor([max(1, round(RATES[config.units.kind] * s)) for s in seconds])
    waveforms = 0.1 * torch.randn(len(seconds), int(lengths.max()), generator=generator)
    waveforms *= torch.arange(waveforms.shape[1]) < lengths[:, None]
    return Batch(
        tuple(f"noise {n}" for n in range(len(seconds))),
        waveforms.pin_memory() if pin else waveforms,
        lengths,
        torch.randint(1, units, (int(spoken.sum()),), generator=generator),
        spoken,
    )
