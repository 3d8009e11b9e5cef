"""Noise in batches as long as a corpus's."""

import pytest

from asr.config import Config, DataConfig, TrainConfig, UnitConfig
from asr.noise_batches import MEAN_SECONDS, UNITS, durations, noise_batches
from asr.tokenizer import build_tokenizer


@pytest.mark.parametrize("kind", UNITS)
def test_units_are_as_many_as_a_tokenizer_has(kind: str) -> None:
    units = UnitConfig.model_validate({"kind": kind})
    assert len(build_tokenizer(units, []).units) == UNITS[kind]


def test_durations_have_the_mean_that_is_said() -> None:
    seconds = durations(1000)
    assert sum(seconds) / 1000 == pytest.approx(MEAN_SECONDS, abs=0.1)
    assert seconds == sorted(seconds)
    assert len(durations(1)) == 1


@pytest.mark.parametrize("max_utterances", [1, 64])
def test_batches_are_those_of_a_trainer(max_utterances: int) -> None:
    config = Config(
        name="tiny",
        data=DataConfig(train=["a"], valid=["b"]),
        units=UnitConfig(kind="character"),
        train=TrainConfig(max_frames=4000, max_utterances=max_utterances),
    )
    batches = noise_batches(config, 29, steps=3, pin=False)
    assert len(batches) >= 3
    for batch in batches:
        assert len(batch.ids) <= max_utterances
        assert batch.waveforms.shape == (len(batch.ids), batch.lengths.max())
        assert batch.waveforms.numel() <= 40.5 * 16000 or len(batch.ids) == 1
        assert batch.target_lengths.sum() == len(batch.targets)
        assert 0 < batch.targets.min() <= batch.targets.max() < 29
