"""Distillation: a network is drawn towards what trained ones say of the same speech.

The teachers hear it as it comes, without masks and warps: what these took from the student is to be
told from what they left. A frame's probabilities say more than a transcript does: when a unit was
said, and what it nearly was.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from asr.config import Config, other_features, other_subwords
from asr.errors import ConfigError, ModelError
from asr.model import AcousticModel
from asr.model_dir import Packaged, load_model_dir


def divergence(
    log_probs: Tensor,  # [B, T, V]
    target: Tensor,  # [B, T, V] log-probabilities
    lengths: Tensor,  # [B] int64, valid frames
) -> Tensor:
    """Sum over t < lengths of KL(target || log_probs), in nats, a scalar."""
    each = F.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)  # [B, T]
    frame = torch.arange(each.shape[1], device=lengths.device)
    return each.masked_fill(frame >= lengths[:, None], 0.0).sum()


def load_teachers(directories: Sequence[Path], config: Config, device: str) -> list[Packaged]:
    """Load the models that a recipe is to learn from, none where it has no weight for any.

    Raises:
        ConfigError: the recipe's weight, but no model, or a model, but no weight.
        ModelError: a model directory is damaged.
    """
    weight = config.train.distill
    if bool(weight) != bool(directories):
        raise ConfigError(
            f"train.distill = {weight:g} and {len(directories)} models to learn from (--teacher): "
            "expected a weight and a model, or neither"
        )
    return [load_model_dir(directory, device) for directory in directories]


class Teachers:
    """Trained networks with one answer between them: the geometric mean of their probabilities.

    See Hinton et al. 2015, "Distilling the knowledge in a neural network".

    Args:
        models: on the device of the student; their networks may be other ones than its.
        config: the student's recipe.
        student: its network.
        units: what that emits.

    Raises:
        ModelError: a model hears other features, or emits other units or at another rate.
    """

    def __init__(
        self,
        models: Sequence[Packaged],
        config: Config,
        student: AcousticModel,
        units: Sequence[str],
    ) -> None:
        ours = student.frames_per_output
        for model in models:
            others = other_features(model.config, config) or other_subwords(model.config, config)
            theirs = model.model.frames_per_output
            if not others and theirs != ours:
                others = f"output has a frame for {theirs} of the features' (expected: {ours})"
            if not others and tuple(model.tokenizer.units) != tuple(units):
                others = f"{len(model.tokenizer.units)} units are not the student's {len(units)}"
            if others:
                raise ModelError(f"{model.directory}: cannot teach this recipe: its {others}")
        self._networks = [model.model for model in models]

    @torch.no_grad()
    def __call__(
        self,
        features: Tensor,  # [B, T, D] float
        frames: Tensor,  # [B] int64, valid ones
    ) -> Tensor:
        """Log-probabilities [B, T', V] float32."""
        answers = [network(features, frames)[0] for network in self._networks]
        return torch.stack(answers).mean(0).log_softmax(-1)
