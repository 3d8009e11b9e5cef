from pathlib import Path

import average_models
import pytest
import torch

from asr.config import Config, FeatureConfig, ModelConfig, UnitConfig
from asr.model import AcousticModel
from asr.model_dir import load_model_dir, save_model_dir
from asr.tokenizer import SubwordTokenizer


def _model(folder: Path, seed: int, *, text: str = "TEA FOR TWO", **settings: float) -> Path:
    config = Config(
        name=f"tiny{seed}",
        units=UnitConfig(kind="subword", vocab_size=42),
        features=FeatureConfig(num_mel_bins=8),
        model=ModelConfig(**{"conv_channels": 2, "num_layers": 1, "hidden_size": 4} | settings),
    )
    tokenizer = SubwordTokenizer.train([text], 42)
    torch.manual_seed(seed)
    network = AcousticModel(config, len(tokenizer.units))
    save_model_dir(folder / str(seed), config, network, tokenizer, "", dtype=torch.float32)
    return folder / str(seed)


def test_the_mean_of_three(tmp_path: Path) -> None:
    models = [_model(tmp_path, seed, dropout=seed / 4) for seed in range(3)]  # no matter
    average_models.average(models, tmp_path / "new" / "mean")
    mean = load_model_dir(tmp_path / "new" / "mean")
    every = [load_model_dir(model).model.state_dict() for model in models]
    for name, value in mean.model.state_dict().items():
        expected = sum(weights[name] for weights in every) / 3
        torch.testing.assert_close(value, expected, rtol=2**-11, atol=2**-25)  # of float16
    assert mean.config.name == "tiny0"
    assert str(models[2]) in (mean.directory / "README.md").read_text()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"hidden_size": 5}, r"1: its \[model\] has hidden_size = 5 \(expected: 4\), as .*0 has"),
        ({"text": "WE SEE THEM"}, "1: its units"),
    ],
)
def test_models_that_have_no_mean(tmp_path: Path, other, says: str) -> None:
    models = [_model(tmp_path, 0), _model(tmp_path, 1, **other)]
    with pytest.raises(average_models.DataError, match=says):
        average_models.average(models, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_the_mean_replaces_none_of_them(tmp_path: Path) -> None:
    models = [_model(tmp_path, 0), _model(tmp_path, 1)]
    with pytest.raises(average_models.DataError, match="is one of the models"):
        average_models.average(models, models[1])
