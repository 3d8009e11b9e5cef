"""The score of a network in training: loss and error rate of its greedy path."""

from dataclasses import astuple

import torch

import kernels
from asr.data import Entry, Loader
from asr.decode import greedy_decode
from asr.features import FilterBank
from asr.metrics import ErrorRate, error_rate
from asr.model import AcousticModel
from asr.processes import ALONE, Processes
from asr.tokenizer import Tokenizer

_BATCH = 16  # utterances


@torch.inference_mode()
def validate(
    model: AcousticModel,
    filter_bank: FilterBank,
    tokenizer: Tokenizer,
    loader: Loader,
    processes: Processes = ALONE,
) -> tuple[float, float]:
    """CTC loss per unit and error rate (PER of phonemes, else WER) on a loader's utterances.

    Each of `processes` hears a share of them, and all have the result. Leaves `model` and
    `filter_bank`, which are on one device, in evaluation mode.
    """
    model.eval()
    filter_bank.eval()
    device = model.cmvn_mean.device
    seconds = [utterance.seconds for utterance in loader.utterances]
    order = [Entry(index, 1.0) for index in sorted(range(len(seconds)), key=seconds.__getitem__)]
    loss, units = 0.0, 0.0
    references: list[list[str]] = []
    hypotheses: list[list[str]] = []
    plan = [order[k : k + _BATCH] for k in range(0, len(order), _BATCH)]
    for batch in loader.batches(plan[processes.rank :: processes.size]):
        features, frames = filter_bank(batch.waveforms.to(device), batch.lengths)
        log_probs, frames = model(features, frames.to(device))
        labels = (batch.targets, frames, batch.target_lengths)
        # Its log-softmax leaves log-probabilities as they are.
        loss += float(kernels.ctc_loss(log_probs.transpose(0, 1), *labels, reduction="sum"))
        units += len(batch.targets)
        for target, spans in zip(
            batch.targets.split(batch.target_lengths.tolist()),
            greedy_decode(log_probs, frames),
            strict=True,
        ):
            references.append(tokenizer.decode(target.tolist()).split())
            hypotheses.append(tokenizer.decode([unit for unit, _, _ in spans]).split())
    own = error_rate(references, hypotheses)
    loss, units, *counts = processes.total(loss, units, *astuple(own))
    return loss / units, ErrorRate(*(int(count) for count in counts)).rate
