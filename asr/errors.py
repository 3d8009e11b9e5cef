"""The exceptions a caller of `asr` may catch.

    AsrError
    |-- AudioError    a file that cannot be read as speech
    |-- ConfigError   a recipe or config.toml with an unknown key or a bad value
    |-- DataError     a manifest, transcript, lexicon or language model that is wrong or missing
    `-- ModelError    a model directory or checkpoint that is incomplete or does not fit

Each message is one line that says what was expected, what came, and what to do.
"""


class AsrError(Exception):
    """Base of every error this package raises on purpose."""


class AudioError(AsrError):
    """An audio file is missing, empty, truncated, not audio, or holds NaN."""


class ConfigError(AsrError):
    """A recipe or model configuration has an unknown key or a bad value."""


class DataError(AsrError):
    """A manifest, transcript, tokenizer, lexicon or language model is wrong or missing."""


class ModelError(AsrError):
    """A model directory or a checkpoint is incomplete or does not fit its configuration."""
