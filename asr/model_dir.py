"""The model directory: everything a transcription needs, as plain data, nothing pickled.

model.safetensors   weights (float16 or float32)      config.toml   the recipe that made it
tokens.txt          the units, blank first            lexicon.txt   phoneme models
subwords.model      subword models (sentencepiece)    lm.arpa.gz    n-gram model, if any
rescorer.*          recurrent language model, if any: see asr/rescoring.py
README.md           model card
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asr.config import Config, Precision, dump_config
from asr.description import Description, read_description
from asr.device import computing_in
from asr.errors import ModelError
from asr.features import FilterBank
from asr.files import replacing, write_text
from asr.level import hear, tones
from asr.model import AcousticModel
from asr.tokenizer import Tokenizer

_NEVER = -100.0  # log-probability of what nobody says; finite, so that a text can be aligned


@dataclass(frozen=True)
class Packaged:
    """A model with what belongs to it, ready to run on `device`."""

    config: Config
    model: AcousticModel
    tokenizer: Tokenizer
    filter_bank: FilterBank
    directory: Path
    device: str
    precision: Precision = "fp32"

    @torch.inference_mode()
    def emissions(
        self,
        waveforms: Tensor,  # [B, N] float32 in [-1, 1]
        lengths: Tensor,  # [B] int64, samples
    ) -> tuple[Tensor, Tensor]:  # log-probabilities [B, T', V] float32, lengths [B]
        """Log-probabilities of the units for padded waveforms.

        Quiet speech is amplified. What is certainly no speech has a length of 0: there are no
        words in it. In a tone there is nothing but blank. Less than a window is heard as if
        silence followed.
        """
        rate = self.config.features.sample_rate
        waveforms, speech = hear(waveforms.to(self.device), lengths.to(self.device), rate)
        lengths = lengths.clamp(min=self.filter_bank.size)
        short = max(0, self.filter_bank.size - waveforms.shape[1])
        waveforms = torch.nn.functional.pad(waveforms, (0, short))
        features, frames = self.filter_bank(waveforms, lengths)
        log_probs, frames = self.network(features, frames.to(self.device))
        heard = features[:, :: self.model.frames_per_output, : self.config.features.num_mel_bins]
        in_tone = tones(heard, self.seconds_per_frame)[..., None]  # [B, T', 1]
        blank = torch.arange(log_probs.shape[2], device=log_probs.device) == 0
        log_probs = log_probs.where(~in_tone, torch.where(blank, 0.0, _NEVER))
        return log_probs, frames.where(speech, 0)

    def network(
        self,
        features: Tensor,  # [B, T, F] float32
        frames: Tensor,  # [B] int64, valid ones
    ) -> tuple[Tensor, Tensor]:  # log-probabilities [B, T', V] float32, lengths [B]
        """The model in its precision."""
        with computing_in(self.precision, self.device):
            log_probs, lengths = self.model(features, frames)
        return log_probs, lengths

    @property
    def seconds_per_frame(self) -> float:
        """Duration of an output frame, which is a whole number of samples."""
        samples = self.model.frames_per_output * self.filter_bank.shift
        return samples / self.config.features.sample_rate


def load_model_dir(
    directory: Path | None = None, device: str = "cpu", precision: Precision = "fp32"
) -> Packaged:
    """Load a model directory; None is the model that comes with the package.

    Raises:
        ModelError: a file is missing, or the weights do not fit the configuration.
        ConfigError: `config.toml` is not valid, or there is no such precision.
    """
    computing_in(precision, device)  # or it says what there is
    return load_network(read_description(directory), device, precision)


def load_network(said: Description, device: str, precision: Precision) -> Packaged:
    """Load the network of a model directory, to run on `device`.

    Raises:
        ModelError: its weights do not fit the configuration.
        ConfigError: there is no such precision.
    """
    computing_in(precision, device)
    model = AcousticModel(said.config, len(said.tokenizer.units))
    load_weights(model, said.directory / "model.safetensors")
    return Packaged(
        said.config,
        model.to(device).eval(),
        said.tokenizer,
        FilterBank(said.config.features).to(device).eval(),
        said.directory,
        device,
        precision,
    )


def load_weights(model: AcousticModel, path: Path, output: bool = True) -> None:
    """Copy the weights of a safetensors file into `model`; without `output` its output layer stays.

    Raises:
        ModelError: the file is damaged, or its names or shapes differ from the model's.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot read the weights: {error}") from None
    if not output:
        own = {name: value for name, value in model.state_dict().items() if _of_output(name)}
        weights = {name: value for name, value in weights.items() if not _of_output(name)} | own
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ModelError(
                f"{path}: {name}: expected {expected.get(name)}, got {got.get(name)}; the "
                "weights are of a model with other settings or units"
            )
    model.load_state_dict(weights)


def _of_output(name: str) -> bool:
    return name.startswith("output.")


def save_model_dir(
    directory: Path,
    config: Config,
    model: AcousticModel,
    tokenizer: Tokenizer,
    card: str,
    extra_files: Iterable[Path] = (),
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model directory; weights as `dtype`, `card` as README.md, `extra_files` copied."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    with replacing(directory / "model.safetensors") as partial:
        save_file(weights, partial)
    write_text(directory / "config.toml", dump_config(config))
    tokenizer.save(directory)
    write_text(directory / "README.md", card)
    for path in extra_files:
        with replacing(directory / path.name) as partial:
            shutil.copyfile(path, partial)
