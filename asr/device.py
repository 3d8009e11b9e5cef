"""Where a network runs, and in which precision."""

from typing import get_args

import torch

from asr.config import Precision
from asr.errors import ConfigError


def choose_device(name: str | None = None) -> str:
    """`name` if it can be used here; without a name, a GPU where there is one.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    usable = [*(["cuda", *gpus] if gpus else []), "cpu"]
    if name is not None and name not in usable:
        raise ConfigError(f"device: expected {' or '.join(usable)} on this machine, got {name!r}")
    return name or usable[0]


def computing_in(precision: Precision, device: torch.device | str) -> torch.autocast:
    """The context in which a network's matrix products have this precision on this device.

    bf16 is torch's autocast: weights stay float32, and sums, softmax and losses are float32, too.

    Raises:
        ConfigError: there is no such precision.
    """
    if precision not in get_args(Precision):
        known = " or ".join(get_args(Precision))
        raise ConfigError(f"precision: expected {known}, got {precision!r}")
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
