"""The loss of a training step: what is done to the features, the network, and its judge."""

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

import kernels
from asr.augment import draw_masks, warp_frequencies
from asr.config import Config
from asr.consistency import consistency_loss, divergence
from asr.data import Batch
from asr.denominator import log_denominator, unit_trigram
from asr.device import computing_in
from asr.distillation import Teachers
from asr.flat_start import flat_start_loss, loudness
from asr.model import AcousticModel


class TrainingLoss:
    """The recipe's loss, or in the first steps the flat start's, summed over a batch; float32.

    With `consistency` the batch is seen in two views, each warped and masked on its own: the loss
    is the mean of theirs and, so weighted, of their divergences from each other. With `mmi` the
    so weighted logarithm of the denominator is added, with `distill` the divergence from what the
    teachers say.
    """

    def __init__(
        self,
        model: AcousticModel,  # on its device
        config: Config,
        targets: list[list[int]],  # of all training speech
        teachers: Teachers | None = None,
    ) -> None:
        self._model = model
        self._teachers = teachers
        self._config = config
        self._trigram: Tensor | None = None  # [V, V, V]
        if config.train.mmi:
            trigram = unit_trigram(targets, model.output.out_features)
            self._trigram = trigram.to(model.output.weight.device)

    def __call__(
        self,
        features: Tensor,  # [B, T, D]
        frames: Tensor,  # [B] int64, valid ones, on the host
        batch: Batch,
        step: int,
        generator: Generator,  # of the CPU; for warps and masks
    ) -> Tensor:
        """A scalar that knows its gradient."""
        settings, augment = self._config.train, self._config.augment
        device = features.device
        # On their way before the network: a copy that came after it would wait for its end.
        targets = pad_sequence(
            batch.targets.split(batch.target_lengths.tolist()), batch_first=True, padding_value=1
        ).to(device, non_blocking=True)  # [B, L]
        target_lengths = batch.target_lengths.to(device, non_blocking=True)
        is_flat = step < settings.flat_start_steps
        views = 2 if settings.consistency and not is_flat else 1
        as_it_came = features
        if views == 2:
            features, frames = features.repeat(2, 1, 1), frames.repeat(2)
        features = warp_frequencies(features, augment, self._config.features, generator)
        masks = draw_masks(features.shape, frames, augment, generator, device)
        frames = frames.to(device, non_blocking=True)
        taught = None  # [B, T', V]
        with computing_in(settings.precision, device):
            if self._teachers is not None and not is_flat:
                taught = self._teachers(as_it_came, frames[: len(as_it_came)])
            hidden, lengths = self._model.encode(features, frames, masks)
            output = self._model.output
            if is_flat:
                labels = (batch.targets, lengths, batch.target_lengths)
                loud = loudness(features, frames, self._model.frames_per_output)
                return flat_start_loss(output, hidden, loud, *labels)
            labels = (targets.repeat(views, 1), lengths, target_lengths.repeat(views))
            hidden = hidden.transpose(0, 1)  # [T', B, S]
            if settings.loss == "linear_ctc":
                weights = (output.weight, output.bias)
                return kernels.linear_ctc_loss(hidden, *weights, *labels, reduction="sum")
            logits = output(hidden)
        loss = kernels.ctc_loss(logits, *labels, reduction="sum")
        if views == 1 and self._trigram is None and taught is None:
            return loss
        log_probs = logits.transpose(0, 1).float().log_softmax(-1)
        if views == 2:
            loss = loss + settings.consistency * consistency_loss(log_probs, lengths)
        if self._trigram is not None:
            denominator = log_denominator(log_probs, lengths, self._trigram)
            loss = loss + settings.mmi * denominator.sum()
        if taught is not None:
            taught = torch.cat([taught] * views)
            loss = loss + settings.distill * divergence(log_probs, taught, lengths)
        return loss / views
