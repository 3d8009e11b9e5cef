"""Distillation: a network is drawn towards what trained ones say of the same speech.

The teachers hear it as it comes, without masks and warps: what these took from the student is to be
told from what they left. A frame's probabilities say more than a transcript does: when a unit was
said, and what it nearly was.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asr.config import Config, other_features, other_units
from asr.errors import ConfigError, ModelError
from asr.model import AcousticModel
from asr.model_dir import Packaged, load_model_dir


def load_teachers(directories: Sequence[Path], config: Config, device: str) -> list[Packaged]:
    """Load the models that a recipe is to learn from, none where it has no weight for any.

    Raises:
        ConfigError: the recipe's weight, but no model, or a model, but no weight; or a model's
            own recipe is not valid.
        ModelError: a model is damaged, hears other features or has another kind of units.
    """
    weight = config.train.distill
    if bool(weight) != bool(directories):
        raise ConfigError(
            f"train.distill = {weight:g}, --teacher given {len(directories)} times: expected a "
            "weight and teachers, or neither"
        )
    models = [load_model_dir(directory, device) for directory in directories]
    for model in models:
        others = other_features(model.config, config) or other_units(model.config, config)
        if others:
            raise ModelError(
                f"{model.directory}: its {others}; take that into the recipe, or another teacher"
            )
    return models


class Teachers:
    """Trained networks with one answer between them: the geometric mean of their probabilities.

    See Hinton et al. 2015, "Distilling the knowledge in a neural network".

    Args:
        models: as `load_teachers` gives them; their networks may be other ones than the student's.
        student: on their device.
        units: what that emits.

    Raises:
        ModelError: a model emits other units, or at another rate.
    """

    def __init__(
        self, models: Sequence[Packaged], student: AcousticModel, units: Sequence[str]
    ) -> None:
        for model in models:
            theirs, ours = model.model.frames_per_output, student.frames_per_output
            if theirs != ours:
                raise ModelError(
                    f"{model.directory}: its output has a frame for every {theirs} of its features "
                    f"(expected: {ours}); give the recipe its [model] subsampling, or take another "
                    "teacher"
                )
            if tuple(model.tokenizer.units) != tuple(units):
                raise ModelError(
                    f"{model.directory}: its units are other ones than the student's; all teachers "
                    "and a model that --init names must have the same"
                )
        self._networks = [model.model for model in models]
        self.names = [model.config.name for model in models]
        checksum = 0
        for model in models:
            checksum = zlib.crc32((model.directory / "model.safetensors").read_bytes(), checksum)
        self.checksum = checksum  # of their weights

    @torch.no_grad()
    def __call__(
        self,
        features: Tensor,  # [B, T, D] float
        frames: Tensor,  # [B] int64, valid ones
    ) -> Tensor:
        """Log-probabilities [B, T', V] float32."""
        answers = [network(features, frames)[0] for network in self._networks]
        return torch.stack(answers).mean(0).log_softmax(-1)
