"""AdamW and its learning rate."""

import torch
from torch import nn

from asr.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Rate at `step`: linear warm-up, constant, then linear to 0 from `decay_from` of the way.

    `progress` is the share of the whole training that is done, 0 to 1.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (1.0 - progress) / max(1e-9, 1.0 - config.decay_from)
    return config.learning_rate * warm * min(1.0, max(0.0, left))


def build_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices, but neither biases nor norms."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)
