"""One step of training: features, loss, gradient, and what AdamW makes of it."""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Generator, nn

from asr.config import Config
from asr.data import Batch
from asr.distillation import Teachers
from asr.features import FilterBank
from asr.loss import TrainingLoss
from asr.model import AcousticModel
from asr.optimizer import build_optimizer
from asr.processes import ALONE, Processes


@dataclass(frozen=True)
class Outcome:
    """What a step came to, over all processes."""

    loss: float  # summed over the utterances
    units: int  # of their transcripts
    gradient_norm: float  # before clipping
    taken: bool  # False: loss or gradient was not finite, and no weight has changed


class Update:
    """Changes a model's weights by a batch, as a recipe says.

    Args:
        model: on its device.
        filter_bank: on the same.
        config: the recipe.
        targets: of all training speech.
        processes: whose gradients are averaged.
        teachers: whom the model is drawn towards, if the recipe says so.
    """

    def __init__(
        self,
        model: AcousticModel,
        filter_bank: FilterBank,
        config: Config,
        targets: list[list[int]],
        processes: Processes = ALONE,
        teachers: Teachers | None = None,
    ) -> None:
        self._model = model
        self._filter_bank = filter_bank
        self._settings = config.train
        self._processes = processes
        self.loss = TrainingLoss(model, config, targets, teachers)
        self.optimizer = build_optimizer(model, config.train.weight_decay)

    def __call__(self, batch: Batch, step: int, rate: float) -> Outcome:
        """Hear `batch` in step number `step` and learn from it at `rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        draw = step * self._processes.size + self._processes.rank
        place = zlib.crc32(f"{self._settings.seed}/{draw}".encode())
        torch.manual_seed(place)  # dropout, dither
        generator = Generator().manual_seed(place)
        device = self._model.output.weight.device
        # Lengths stay on the host: until the end of the step nothing waits for a GPU.
        waveforms = batch.waveforms.to(device, non_blocking=True)
        features, frames = self._filter_bank(waveforms, batch.lengths)
        loss = self.loss(features, frames, batch, step, generator)
        own = len(batch.targets)
        self.optimizer.zero_grad()
        (loss / own).backward()
        parameters = list(self._model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._processes.average(gradients, own)
        norm = float(nn.utils.clip_grad_norm_(parameters, self._settings.gradient_clip))
        value, units = self._processes.total(float(loss.detach()), own)
        taken = math.isfinite(value) and math.isfinite(norm)
        if taken:
            self.optimizer.step()
        return Outcome(value, int(units), norm, taken)
