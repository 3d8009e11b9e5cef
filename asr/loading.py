"""A model ready to transcribe: the words load in another process while this one imports torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from asr.config import Precision, parse_config
from asr.description import read_description
from asr.errors import ConfigError
from asr.hotwords import bonuses_of
from asr.search_processes import processes_for

if TYPE_CHECKING:
    from asr.transcribe import Recognizer


def load_model(
    model: str | Path | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
    *,
    method: str | None = None,
    lm_weight: float | None = None,
    word_score: float | None = None,
    beam_size: int | None = None,
    min_confidence: float | None = None,
    language_model: str | Path | None = None,
    hotwords: Mapping[str, float] | Iterable[str] = (),
) -> "Recognizer":
    """Load a model for transcription.

    Args:
        model: model directory; None is the model that comes with the package.
        device: "cpu", "cuda", "cuda:1"; None is a GPU where there is one.
        precision: "bf16" is for GPUs, and for CPUs with instructions for it (AMX, AVX512-BF16): of
            those a batch has more than a single recording.
        method: "greedy" or "beam"; this and what follows: None is as the model's config says.
        lm_weight: weight of the language model; it and the next three are of beam search only.
        word_score: added for each word of a hypothesis.
        beam_size: hypotheses kept after each frame.
        min_confidence: where no word of up to 20 s is as likely right as this, there is none: it is
            taken for noise; with 0 every word stays.
        language_model: an ARPA file in place of the model's language models; it and `hotwords`
            need, and imply, beam search.
        hotwords: words that are expected; or such words, and what is added to the
            log10-probability that a language model gives them: 4 unless it is said. The search
            takes longer by the number of different sounds, and numbers, that they end with.

    Raises:
        ModelError: no such model, or one that is incomplete or damaged.
        ConfigError: a bad value, no such device, or greedy decoding with what it has no use for.
        DataError: the lexicon or the language model is missing or wrong.
    """
    said = read_description(None if model is None else Path(model))
    weights = {
        "lm_weight": lm_weight,
        "word_score": word_score,
        "beam_size": beam_size,
        "min_confidence": min_confidence,
    }
    changes = {name: value for name, value in weights.items() if value is not None}
    bonuses = bonuses_of(hotwords)
    scored = {"language_model": language_model is not None, "hotwords": bool(bonuses)}
    searched = [name for name, given in scored.items() if given]
    method = method or ("beam" if searched else said.config.decode.method)
    decode = said.config.decode.model_dump() | {"method": method} | changes
    config = parse_config(said.config.model_dump() | {"decode": decode}, "load_model")
    if method == "greedy" and (of_search := [*changes, *searched]):
        raise ConfigError(
            f"expected method 'beam' with {', '.join(of_search)}, got 'greedy'; leave it out"
        )
    path = None if language_model is None else Path(language_model)
    scorers = (said.tokenizer, said.directory, path, bonuses)
    words = processes_for(*scorers) if method == "beam" else None

    from asr.decode import build_decoder
    from asr.device import choose_device
    from asr.model_dir import load_network
    from asr.transcribe import Recognizer

    packaged = load_network(said, choose_device(device), precision)
    return Recognizer(packaged, build_decoder(config.decode, *scorers, words=words))
