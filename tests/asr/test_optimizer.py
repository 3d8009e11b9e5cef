import pytest

from asr.config import TrainConfig
from asr.optimizer import learning_rate


def test_learning_rate_rises_holds_and_falls():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=10, decay_from=0.5)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(settings, 9, 0.1) == 1
    assert learning_rate(settings, 500, 0.5) == 1
    assert learning_rate(settings, 700, 0.75) == pytest.approx(0.5)
    assert learning_rate(settings, 900, 1.0) == 0
