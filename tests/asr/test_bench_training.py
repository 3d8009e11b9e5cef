"""Speed on noise: what is timed is the recipe's network, and its rivals compute the same."""

import json

import pytest
import torch

from asr import bench_training as bench_module
from asr.bench_training import bench_training, covered, networks, part_of
from asr.config import Config, DataConfig, ModelConfig, TrainConfig, UnitConfig
from asr.errors import AsrError
from asr.noise_batches import noise


def _recipe(**train: object) -> Config:
    return Config(
        name="tiny",
        data=DataConfig(train=["a"], valid=["b"]),
        units=UnitConfig(kind="character"),
        model=ModelConfig(conv_channels=2, num_layers=2, hidden_size=4, dropout=0.0),
        train=TrainConfig.model_validate({"max_frames": 4000, **train}),
    )


def test_rivals_compute_the_same() -> None:
    config = _recipe()
    batch = noise(config, 29, [0.5, 0.9], pin=False)
    features = torch.randn(2, 90, 80)
    ours, rival = (make() for make in networks(config, 29, "cpu").values())
    expected, lengths = ours.eval()(features, batch.lengths // 160)
    got, _ = rival.eval()(features, batch.lengths // 160)
    for n, length in enumerate(lengths):
        torch.testing.assert_close(got[n, :length], expected[n, :length])


def test_what_torch_has_not_has_no_rival() -> None:
    config = _recipe()
    for change in ({"recurrent": "gru"}, {"recurrent": "cifg"}, {"peephole": True}):
        other = config.model_copy(update={"model": config.model.model_copy(update=change)})
        assert list(networks(other, 29, "cpu")) == ["kernels"]


def test_report() -> None:
    report = bench_training(_recipe(mmi=0.5), steps=1, repeats=2, inference=(2,))
    assert [way.name for way in report.speeds] == ["kernels", "torch.nn.LSTM, packed"]
    for way in report.speeds:
        assert 0 < way.training.lowest <= way.training.median <= way.training.highest
        assert way.inference[2].lowest > 0
    assert "inference, batch 2: " in report.summary()
    assert json.loads(report.to_json())["recipe"] == "tiny, fp32"


def test_a_rival_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no engine\nand a trace")

    monkeypatch.setattr(bench_module, "Packed", refuse)
    report = bench_training(_recipe(), steps=1, repeats=1, inference=(1,))
    assert [way.name for way in report.speeds] == ["kernels"]
    assert "torch.nn.LSTM, packed: not timed: RuntimeError: no engine" in report.summary()


def test_a_step_that_is_not_taken_has_no_speed() -> None:
    config = _recipe()
    few_frames = {"subsampling": "stack", "stack": 8, "skip": 16}
    other = config.model_copy(update={"model": config.model.model_copy(update=few_frames)})
    with pytest.raises(AsrError, match="does not run here: AsrError: tiny: loss or gradient"):
        bench_training(other, steps=1, repeats=1, inference=(1,))


def test_time_that_is_covered() -> None:
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("forward_kernel", "recurrence"),
        ("void cudnn::LSTM_elementWise_bp1", "recurrence"),
        ("recur_kernel", "CTC"),
        ("cudnn_infer_ampere_scudnn_winograd_conv", "convolutions"),
        ("nvjet_hsh_128x256", "products"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("vectorized_layer_norm_kernel", "the rest"),
    ],
)
def test_parts_of_the_work(kernel: str, part: str) -> None:
    assert part_of(kernel) == part
