import torch
from torch import nn

from asr.averaging import BestEpochs
from asr.checkpoint import EpochScore


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
    assert best.rank(history) == [1, 3]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["0001", "0003"]
    assert torch.equal(best.average(history)["weight"], torch.tensor([[2.0]]))


def test_of_equals_the_later_epoch_is_kept(tmp_path):
    assert BestEpochs(tmp_path, 1).rank([_score(0, 0.5), _score(1, 0.5)]) == [1]
