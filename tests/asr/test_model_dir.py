import pytest
import torch
from safetensors.torch import load_file, save_file

from asr.config import Config, FeatureConfig, ModelConfig, UnitConfig
from asr.errors import ConfigError, ModelError
from asr.model import AcousticModel
from asr.model_dir import load_model_dir, save_model_dir
from asr.tokenizer import build_tokenizer

CONFIG = Config(
    name="tiny",
    features=FeatureConfig(num_mel_bins=8),
    units=UnitConfig(kind="character"),
    model=ModelConfig(conv_channels=2, num_layers=1, hidden_size=4),
)


@pytest.fixture
def directory(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CONFIG.units, ["HELLO"])
    model = AcousticModel(CONFIG, len(tokenizer.units))
    extra = tmp_path / "lm.arpa.gz"
    extra.write_bytes(b"x")
    out = tmp_path / "model"
    save_model_dir(out, CONFIG, model, tokenizer, "# card\n", [extra], torch.float32)
    return out, model


def test_round_trip(directory):
    out, model = directory
    packaged = load_model_dir(out)
    assert packaged.config == CONFIG
    assert packaged.seconds_per_frame == pytest.approx(0.04)
    assert packaged.tokenizer.units[0] == "<blk>"
    waveforms, lengths = torch.randn(2, 4000), torch.tensor([4000, 1700])
    log_probs, frames = packaged.emissions(waveforms, lengths)
    expected, _ = model.eval()(*packaged.filter_bank(waveforms, lengths))
    torch.testing.assert_close(log_probs, expected)
    assert frames.tolist() == [7, 3]
    assert (out / "README.md").read_text() == "# card\n"
    assert (out / "lm.arpa.gz").read_bytes() == b"x"
    assert not list(out.glob("*.partial"))


def test_half_the_bits_hear_nearly_the_same(directory):
    out, _ = directory
    waveforms, lengths = torch.randn(2, 8000), torch.tensor([8000, 5700])
    exact, frames = load_model_dir(out).emissions(waveforms, lengths)
    rough, same_frames = load_model_dir(out, precision="bf16").emissions(waveforms, lengths)
    assert rough.dtype == torch.float32
    assert frames.tolist() == same_frames.tolist()
    error = (rough - exact).abs().max().item()
    assert 0 < error < 0.05  # eight bits of mantissa through five layers


def test_a_precision_that_is_none(directory):
    with pytest.raises(ConfigError, match="precision: expected fp32 or bf16, got 'fp16'"):
        load_model_dir(directory[0], precision="fp16")


def test_an_output_frame_is_a_whole_number_of_samples(tmp_path):
    """10 ms at 22.05 kHz are 220.5 samples: of 220 each, 20 s end 45 ms sooner."""
    config = CONFIG.model_copy(
        update={"features": FeatureConfig(num_mel_bins=8, sample_rate=22050)}
    )
    tokenizer = build_tokenizer(config.units, ["HELLO"])
    model = AcousticModel(config, len(tokenizer.units))
    save_model_dir(tmp_path, config, model, tokenizer, "")
    packaged = load_model_dir(tmp_path)
    samples = 20 * 22050
    log_probs, _ = packaged.emissions(torch.randn(1, samples), torch.tensor([samples]))
    starts = torch.arange(log_probs.shape[1]) * packaged.seconds_per_frame
    assert starts[-1] < 20 <= starts[-1] + 2 * packaged.seconds_per_frame


def test_half_precision_is_close(directory, tmp_path):
    out, model = directory
    tokenizer = load_model_dir(out).tokenizer
    save_model_dir(tmp_path / "half", CONFIG, model, tokenizer, "")
    weights = load_model_dir(tmp_path / "half").model.state_dict()
    for name, value in model.state_dict().items():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], value.half().float())


def test_what_is_not_a_model_directory(tmp_path, directory):
    with pytest.raises(ModelError, match="no such model directory"):
        load_model_dir(tmp_path / "none")
    with pytest.raises(ModelError, match=r"lacks config\.toml"):
        load_model_dir(tmp_path)
    out, _ = directory
    with pytest.raises(ModelError, match=r"config\.toml: a file, expected a model directory"):
        load_model_dir(out / "config.toml")
    out.rename(tmp_path / "model")  # as a training has it
    with pytest.raises(ModelError, match=r"lacks config\.toml; take .*model$"):
        load_model_dir(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model\.safetensors$"):
        load_model_dir(tmp_path / "model")


def test_damaged_weights(directory):
    path = directory[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_model_dir(directory[0])


def test_weights_of_another_model(directory):
    path = directory[0] / "model.safetensors"
    weights = load_file(path)
    weights["output.bias"] = weights["output.bias"][:-1].clone()
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"output\.bias: expected \(39,\), got \(38,\)"):
        load_model_dir(directory[0])


def test_a_bad_configuration_is_named(directory):
    path = directory[0] / "config.toml"
    path.write_text(path.read_text().replace("hidden_size", "hiden_size"))
    with pytest.raises(ConfigError, match="did you mean 'hidden_size'"):
        load_model_dir(directory[0])
