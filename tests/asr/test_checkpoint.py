from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr.checkpoint import EpochScore, TrainingState, load_checkpoint, save_checkpoint
from asr.config import parse_config
from asr.errors import ModelError


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(2, 3)


@pytest.fixture
def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def path(tmp_path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    state = TrainingState(1, 2, 3, corpus=4, history=[EpochScore(0, 1, 0.1, 0.2, 0.3, 4.0)])
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, parse_config({"name": "a"}, ""), state, model, optimizer)
    return path


def test_what_was_saved_comes_back(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    other = nn.Linear(2, 3)
    fresh = torch.optim.AdamW(other.parameters())
    state = load_checkpoint(path, other, fresh)
    assert (state.epoch, state.batch, state.step, state.corpus) == (1, 2, 3, 4)
    assert state.history == [EpochScore(0, 1, 0.1, 0.2, 0.3, 4.0)]
    assert torch.equal(other.weight, model.get_parameter("weight"))
    for mine, theirs in zip(
        fresh.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors["model.renamed"] = tensors.pop("model.bias")


def _add(tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.zeros(1)


def _add_moment(tensors: dict[str, Tensor]) -> None:
    tensors["optimizer.7.exp_avg"] = torch.zeros(1)


def _widen(tensors: dict[str, Tensor]) -> None:
    tensors["optimizer.0.exp_avg"] = torch.zeros(3, 5)


@pytest.mark.parametrize("change", [_rename, _add, _add_moment, _widen])
def test_tensors_of_another_network_are_named(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    change: Callable[[dict[str, Tensor]], None],
) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ModelError, match=r"is of another network: .*; train into a new folder"):
        load_checkpoint(path, model, optimizer)


def test_a_part_of_a_checkpoint_is_named(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a checkpoint of a training"):
        load_checkpoint(path, model, optimizer)
