"""What a model directory says beside its weights. No torch here, whose import takes seconds."""

from pathlib import Path
from typing import NamedTuple

from asr.config import Config, load_config
from asr.errors import ModelError
from asr.tokenizer import Tokenizer, load_tokenizer

PACKAGED_MODEL = Path(__file__).parent / "models" / "english"


class Description(NamedTuple):
    """A model directory without its network."""

    directory: Path
    config: Config
    tokenizer: Tokenizer


def read_description(directory: Path | None = None) -> Description:
    """Read a model directory's recipe and units; None is the model that comes with the package.

    Raises:
        ModelError: there is no such directory, or it lacks a file.
        ConfigError: `config.toml` is not valid.
        DataError: the lexicon is wrong.
    """
    directory = directory or PACKAGED_MODEL
    if not directory.is_dir():
        what = "a file, expected a" if directory.exists() else "no such"
        raise ModelError(f"{directory}: {what} model directory; `asr train` makes one")
    for name in ("config.toml", "model.safetensors"):
        if not (directory / name).is_file():
            trained = directory / "model"
            advice = f"; take {trained}" if (trained / name).is_file() else ""
            raise ModelError(f"{directory}: not a model directory: it lacks {name}{advice}")
    config = load_config(directory / "config.toml")
    return Description(directory, config, load_tokenizer(config.units, directory))
