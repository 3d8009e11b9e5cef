import pytest
import torch
from torch import nn

from asr.averaging import BestEpochs
from asr.checkpoint import EpochScore
from asr.errors import ModelError


def _score(epoch: int, rate: float) -> EpochScore:
    return EpochScore(epoch, epoch, 1.0, 1.0, rate, 1.0)


def test_keeps_the_best_and_averages_them(tmp_path):
    best = BestEpochs(tmp_path, 2)
    model = nn.Linear(1, 1)
    history = []
    for epoch, rate in enumerate([0.5, 0.2, 0.4, 0.3, 0.9]):
        nn.init.constant_(model.weight, float(epoch))
        history.append(_score(epoch, rate))
        best.keep(model, history)
        best.drop_others(history)
        (tmp_path / "mine.safetensors").touch()  # is left alone
    (tmp_path / "mine.safetensors").unlink()
    assert best.rank(history) == [1, 3]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["0001", "0003"]
    assert torch.equal(best.average(history)["weight"], torch.tensor([[2.0]]))


def test_of_equals_the_later_epoch_is_kept(tmp_path):
    assert BestEpochs(tmp_path, 1).rank([_score(0, 0.5), _score(1, 0.5)]) == [1]


def test_damaged_weights_are_named_and_without_them_the_mean_is_of_the_others(tmp_path):
    best = BestEpochs(tmp_path, 2)
    model, history = nn.Linear(1, 1), []
    for epoch in range(2):
        history.append(_score(epoch, 0.5))
        best.keep(model, history)
    damaged = tmp_path / "0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"0001\.safetensors: cannot read.*; delete it"):
        best.average(history)
    damaged.unlink()
    assert best.kept(history) == [0]
    assert torch.equal(best.average(history)["weight"], model.weight)
