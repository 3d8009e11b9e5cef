"""Configuration of a recipe and of a model directory: frozen, typed, validated.

A recipe is a TOML file with these tables; the model directory's `config.toml` is the same
thing, so a model always carries the recipe that made it.
"""

import difflib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from asr.errors import ConfigError

Precision = Literal["fp32", "bf16"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Table):
    """Names of manifests (`NAME.jsonl.gz` in the data folder) and which utterances are used."""

    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()  # for the reader: training never looks at them, `asr evaluate` does
    min_seconds: float = Field(0.1, ge=0)
    max_seconds: float = Field(30.0, gt=0)  # longer utterances are listed and left out

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds <= max_seconds: got {self.min_seconds:g} and {self.max_seconds:g}"
            )
        return self


class FeatureConfig(_Table):
    """Kaldi-compatible log-mel filterbank."""

    sample_rate: int = Field(16000, gt=0)  # Hz
    num_mel_bins: int = Field(80, ge=4)
    frame_length: float = Field(25.0, gt=0)  # ms
    frame_shift: float = Field(10.0, gt=0)  # ms
    low_freq: float = Field(20.0, ge=0)  # Hz
    high_freq: float = -400.0  # Hz; not positive: offset from Nyquist
    snip_edges: bool = False
    dither: float = Field(0.0, ge=0)  # in training only
    deltas: int = Field(0, ge=0, le=2)  # orders of time derivatives appended

    @property
    def highest(self) -> float:
        """Upper end of the band in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    @model_validator(mode="after")
    def _frames(self) -> Self:
        sample = 1000 / self.sample_rate  # ms
        if not sample <= self.frame_shift <= self.frame_length:
            raise ValueError(
                f"frame_shift from {sample:g} ms, one sample, to frame_length: got "
                f"{self.frame_shift:g} and {self.frame_length:g}"
            )
        return self

    @model_validator(mode="after")
    def _band(self) -> Self:
        nyquist = self.sample_rate / 2
        if not self.low_freq < self.highest <= nyquist:
            raise ValueError(
                f"low_freq < high_freq <= {nyquist:g} Hz, half the sample rate: got "
                f"{self.low_freq:g} and {self.highest:g}"
            )
        return self


class UnitConfig(_Table):
    """What the network emits. Unit 0 is the CTC blank."""

    kind: Literal["phoneme", "subword", "character"] = "phoneme"
    vocab_size: int = Field(500, gt=1)  # subwords only
    lexicon: str = ""  # phonemes only: path, or empty for the lexicon that comes with asr


class ModelConfig(_Table):
    """Acoustic model: normalisation, subsampling front end, recurrent stack, output layer."""

    # Frames: the weight of the global mean, see AcousticModel.
    cmn_prior: float = Field(math.inf, ge=0, allow_inf_nan=True)
    subsampling: Literal["conv4", "stack"] = "conv4"
    conv_channels: int = Field(32, gt=0)
    stack: int = Field(3, gt=0)  # frames put side by side (Sak 2015), with "stack"
    skip: int = Field(3, gt=0)  # of which every skip-th is kept
    recurrent: Literal["lstm", "cifg", "gru"] = "lstm"  # cifg: an LSTM with f = 1 - i
    peephole: bool = False  # LSTM and CIFG: gates see c
    recurrent_dropout: float = Field(0.0, ge=0, lt=1)  # of h, one mask for all frames
    bidirectional: bool = True
    num_layers: int = Field(4, gt=0)
    hidden_size: int = Field(256, gt=0)  # per direction
    dense_size: int = Field(0, ge=0)  # dense layer between recurrent layers; 0: none
    layer_norm: bool = True
    dropout: float = Field(0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _peepholes_need_c(self) -> Self:
        if self.peephole and self.recurrent == "gru":
            raise ValueError('recurrent = "lstm" or "cifg" with peephole: got "gru"')
        return self


class AugmentConfig(_Table):
    """What is done to training speech only."""

    speeds: tuple[Annotated[float, Field(ge=0.1, le=10)], ...] = Field(
        (0.9, 1.0, 1.1), min_length=1
    )
    level: float = Field(0.0, ge=0)  # dB, uniform gain of +- this
    noise_probability: float = Field(0.0, ge=0, le=1)
    noise_snr: tuple[float, float] = (5.0, 30.0)  # dB, uniform
    frequency_warp: float = Field(0.0, ge=0, lt=0.5)  # factor of 1 +- this on the frequencies
    frequency_masks: int = Field(2, ge=0)
    frequency_mask_bins: int = Field(27, ge=0)
    time_masks: int = Field(2, ge=0)
    time_mask_frames: int = Field(40, ge=0)
    time_mask_fraction: float = Field(0.2, ge=0, le=1)  # at most this share of an utterance a mask

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.noise_snr
        if low > high:
            raise ValueError(f"noise_snr from low to high: got {low:g} and {high:g}")
        return self


class TrainConfig(_Table):
    """Optimisation."""

    seed: int = Field(1, ge=0, lt=2**63)
    epochs: int = Field(30, gt=0)
    max_frames: int = Field(6000, gt=0)  # padded feature frames in a batch
    max_utterances: int = Field(64, gt=0)  # in a batch
    loss: Literal["ctc", "linear_ctc"] = "ctc"  # the second holds few of a large batch's logits
    # Weight of the divergence between two views of each utterance, which the network then hears
    # twice (memory!); 0: one view. 0.2 in the paper, with 2.5 times as many masks: consistency.py.
    consistency: float = Field(0.0, ge=0)
    # Weight of the denominator, see denominator.py; 0: CTC alone, 1: MMI. The training loss is then
    # no longer the CTC loss that validation shows, and may be negative.
    mmi: float = Field(0.0, ge=0, le=1)
    # Weight of the divergence from what `asr train --teacher` models say, see distillation.py; the
    # training loss is then no longer the CTC loss either.
    distill: float = Field(0.0, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(500, ge=0)
    flat_start_steps: int = Field(0, ge=0)  # of cross-entropy on even alignments before CTC
    decay_from: float = Field(0.5, ge=0, le=1)  # share of all steps after which the rate falls to 0
    gradient_clip: float = Field(5.0, gt=0)
    precision: Precision = "fp32"
    average_best: int = Field(3, gt=0)  # epochs whose weights are averaged at the end
    patience: int = Field(0, ge=0)  # epochs without a better score before stopping; 0: never
    checkpoint_steps: int = Field(500, gt=0)

    @model_validator(mode="after")
    def _some_need_logits(self) -> Self:
        if (self.consistency or self.mmi or self.distill) and self.loss != "ctc":
            raise ValueError(f'loss = "ctc" with consistency, mmi or distill: got "{self.loss}"')
        return self


class DecodeConfig(_Table):
    """Greedy path and beam search; `asr tune-lm` picks the weights on a development set."""

    method: Literal["greedy", "beam"] = "greedy"
    blank_penalty: float = Field(0.0, ge=0)  # of the greedy path, off the blank's log-probability
    beam_size: int = Field(50, gt=0)
    beam_size_token: int = Field(12, gt=0)
    beam_threshold: float = Field(12.0, gt=0)
    lm_weight: float = 1.5
    word_score: float = 0.0
    prior_weight: float = Field(0.0, ge=0)  # of log_priors, subtracted from the log-probabilities
    log_priors: tuple[float, ...] = ()  # of the units; empty: none are subtracted
    rescore_weight: float = Field(0.0, ge=0)  # of asr/rescoring.py's ln p; 0: no second pass
    rescore_ngram: float = Field(1.0, ge=0, le=1)  # share of lm_weight that stays in that pass
    rescore_word_score: float = 0.0  # added for each word in that pass
    confidence: tuple[float, float, float] = (1.0, 0.0, 0.0)  # weights, see asr/confidence.py
    # What is not likelier right in any word of an utterance is taken for noise: no words.
    min_confidence: float = Field(0.0, ge=0, le=1)


class Config(_Table):
    """A whole recipe."""

    name: str
    data: DataConfig = DataConfig()
    features: FeatureConfig = FeatureConfig()
    units: UnitConfig = UnitConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()


#: Settings that weights do not depend on.
_WEIGHTLESS = {
    "features": {"dither"},
    "model": {"cmn_prior", "dropout", "recurrent_dropout", "skip"},
}


def other_features(theirs: Config, ours: Config) -> str:
    """Settings of `theirs` that make other features than `ours`; empty: they are the same."""
    return _others("features", theirs, ours)


def other_network(theirs: Config, ours: Config) -> str:
    """Settings of `theirs` with which its weights fit no network of `ours`; empty: they fit.

    "[model] has hidden_size = 320 (expected: 256)". Only the number of units is not looked at.
    """
    return other_features(theirs, ours) or _others("model", theirs, ours)


def other_units(theirs: Config, ours: Config) -> str:
    """Another kind of units than `ours`, or another number of subwords; empty: the same."""
    has, expected = theirs.units, ours.units
    if has.kind != expected.kind:
        return f"[units] has kind = {has.kind!r} (expected: {expected.kind!r})"
    if has.kind == "subword" and has.vocab_size != expected.vocab_size:
        return f"[units] has vocab_size = {has.vocab_size} (expected: {expected.vocab_size})"
    return ""


def _others(table: str, theirs: Config, ours: Config) -> str:
    has, expected = (getattr(each, table).model_dump() for each in (theirs, ours))
    idle = {"stack"} if ours.model.subsampling == "conv4" else {"conv_channels"}
    others = [
        f"{key} = {has[key]} (expected: {expected[key]})"
        for key in expected
        if has[key] != expected[key] and key not in _WEIGHTLESS[table] | idle
    ]
    return f"[{table}] has {', '.join(others)}" if others else ""


def _valid_names(location: tuple[int | str, ...]) -> list[str]:
    table: Any = Config
    for part in location:
        table = table.model_fields[str(part)].annotation
    return list(table.model_fields)


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate `values` as a recipe.

    Raises:
        ConfigError: an unknown key (the nearest valid name is given) or a bad value.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        *table, key = first["loc"]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = _valid_names(tuple(table))
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"valid names: {', '.join(names)}"
            raise ConfigError(f"{source}: unknown key {where!r}; {hint}") from None
        if first["type"] == "value_error":  # one of ours, about several keys
            raise ConfigError(f"{source}: {where}: expected {first['ctx']['error']}") from None
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ConfigError(f"{source}: {where}: {first['msg']}{got}") from None


def load_config(path: Path) -> Config:
    """Read a recipe or a model directory's `config.toml`."""
    try:
        return read_config(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def read_config(text: str, source: str) -> Config:
    """`text`, TOML from `source`, as a recipe."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    return parse_config(values, source)


def dump_config(config: Config) -> str:
    """`config` as TOML text that `load_config` reads back to an equal value."""
    return tomli_w.dumps(config.model_dump(mode="json"))
