"""Checkpoints of a training: one safetensors file with the state of everything that has any.

Random numbers have none: each is drawn from a generator seeded by its place in the training.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asr.config import Config, dump_config, read_config
from asr.errors import ModelError
from asr.files import replacing

_STATE = "training"


@dataclass
class EpochScore:
    """What one epoch came to."""

    epoch: int
    step: int
    train_loss: float  # per unit
    valid_loss: float  # per unit
    error_rate: float  # of the units' own kind: PER or WER
    seconds: float  # wall time


@dataclass
class TrainingState:
    """Where a training stands."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # steps since the start, of one batch for each process
    corpus: int = 0  # checksum of the training set; 0: not known
    teachers: int = 0  # checksum of their weights; 0: none
    skipped: int = 0  # steps left out because loss or gradient was not finite
    epoch_loss: float = 0.0  # sums over the epoch so far
    epoch_units: int = 0
    epoch_seconds: float = 0.0  # wall time of the epoch so far
    history: list[EpochScore] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    config: Config,
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that a training needs to go on; atomically.

    Args:
        path: the file.
        config: the recipe; a training resumes only under the recipe it began with.
        state: where the training stands.
        model: its parameters and buffers are saved.
        optimizer: its moments are saved.
    """
    tensors = {f"model.{name}": value.cpu() for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).cpu()
    metadata = {_STATE: json.dumps(asdict(state)), "config": dump_config(config)}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def check_recipe(path: Path, config: Config) -> None:
    """Refuse a checkpoint of another recipe than `config`; only the number of epochs may differ.

    Raises:
        ModelError: the recipe is another one, and where; or the file is damaged.
    """
    with _opened(path) as file:
        theirs = _settings(read_config(file.metadata()["config"], str(path)))
    ours = _settings(config)
    changed = [key for key in ours if ours[key] != theirs[key] and key != "train.epochs"]
    if changed:
        raise ModelError(
            f"{path}: was made under another recipe, with other {', '.join(changed)}; train into "
            "a new folder, or start from its weights with --init"
        )


def _settings(config: Config) -> dict[str, Any]:
    """Values of a recipe by TABLE.KEY."""
    tables = config.model_dump()
    name = tables.pop("name")
    return {"name": name} | {
        f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a checkpoint of a training: {error}") from None


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Restore what `save_checkpoint` wrote under the same recipe.

    Raises:
        ModelError: the file is damaged, or of another network.
    """
    with _opened(path) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()[_STATE])
        values["history"] = [EpochScore(**score) for score in values["history"]]
        state = TrainingState(**values)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    weights = {}
    try:
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = tensor
                continue
            index, _, moment = rest.partition(".")
            if tensor.dim() and tensor.shape != parameters[int(index)].shape:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}")
            moments.setdefault(int(index), {})[moment] = tensor
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = shorten(str(error), 300)
        raise ModelError(
            f"{path}: is of another network: {reason}; train into a new folder"
        ) from None
    whole = optimizer.state_dict()
    whole["state"] = moments
    optimizer.load_state_dict(whole)
    return state
