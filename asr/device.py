"""Where a network runs."""

import torch

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
