import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch

import asr.tune
from asr.audio import SAMPLE_RATE, read_audio
from asr.confidence import confidences
from asr.config import Config, DecodeConfig, load_config
from asr.data import Utterance
from asr.decode import BeamDecoder, GreedyDecoder
from asr.errors import DataError
from asr.loading import load_model
from asr.metrics import ErrorRate
from asr.model_dir import Packaged, load_model_dir
from asr.rescoring import Rescorer
from asr.search_processes import SearchProcesses, Vocabulary
from asr.tokenizer import CharacterTokenizer
from asr.tune import Trial, fit_blank_penalty, fit_min_confidence, save_weights, search, tune_lm
from asr.word_search import Alternatives, Hypothesis

torch.set_num_threads(1)

# Only a language model that weighs enough tells THE SEE from THE SEA where they sound alike.
ARPA = r"""\data\
ngram 1=6
ngram 2=2

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-3.0	<unk>
-1.0	SEA	-0.3
-1.0	SEE	-0.3
-1.0	THE	-0.3

\2-grams:
-0.1	THE SEA
-1.5	THE SEE

\end\
"""


def spoken(text: str, mistaken: dict[int, str]) -> torch.Tensor:
    """[1, T, V]: characters of `text`; at `mistaken` places another one is a little likelier."""
    tokenizer = CharacterTokenizer()
    probs = torch.full((1, 2 * len(text), len(tokenizer.units)), 1e-3)
    for place, character in enumerate(text.replace(" ", "|")):
        probs[0, 2 * place + 1, 0] = 0.9
        probs[0, 2 * place, tokenizer.units.index(character)] = 0.3 if place in mistaken else 0.9
        if place in mistaken:
            probs[0, 2 * place, tokenizer.units.index(mistaken[place])] = 0.6
    return (probs / probs.sum(-1, keepdim=True)).log()


def test_search_finds_weights_that_leave_no_error(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    emissions = [spoken("THE SEA", {6: "E"}), spoken("SEE", {})]
    build = partial(BeamDecoder, words=words)
    tuning = search(DecodeConfig(), build, emissions, ["THE SEA", "SEE"])
    assert tuning.best.score == ErrorRate(0, 0, 0, 3)
    unaided = BeamDecoder(DecodeConfig(lm_weight=0.0), words)(emissions[0], torch.tensor([14]))
    assert unaided[0].words == ("THE", "SEE")
    errors = [trial.score.errors for trial in tuning.trials]
    assert errors == sorted(errors)
    assert len({trial.decode for trial in tuning.trials}) == len(tuning.trials)
    assert "WER   0.00 %  (0 of 3)" in tuning.summary(1)
    assert "greedy path: blank_penalty 0.00\nconfidences: calibration error" in tuning.summary(1)


def test_weights_that_make_nothing_right_are_none(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    build = partial(BeamDecoder, words=words)
    with pytest.raises(DataError, match="any of 2 words right; are the transcripts"):
        search(DecodeConfig(), build, [spoken("SEE", {})[:, :1]], ["THE SEA"])


@pytest.mark.parametrize(
    ("present", "best"),
    [
        ({}, (1.75, -1.5)),  # across a valley in which no weight alone finds its way
        ({"lm_weight": 0.3, "word_score": 7.0, "prior_weight": 0.1}, (0.3, 7.0)),
    ],
    ids=["valley", "present"],
)
def test_weights_are_sought_together_and_from_the_present_ones(
    present: dict[str, float],
    best: tuple[float, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score(decode: DecodeConfig, *_: object) -> ErrorRate:
        lm_weight, word_score = decode.lm_weight, decode.word_score
        across = abs(lm_weight - word_score / 2 - 2.5)
        errors = int(20 * across) + int(4 * abs(lm_weight - 1.75))
        return ErrorRate(0 if (lm_weight, word_score) == (0.3, 7.0) else errors, 0, 0, 100)

    monkeypatch.setattr("asr.tune._score", score)
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    tuning = search(
        DecodeConfig.model_validate(present),
        partial(BeamDecoder, words=words),
        [spoken("SEE", {})],
        ["SEE"],
    )
    decode = tuning.best.decode
    assert (decode.lm_weight, decode.word_score) == best
    assert tuning.best.score.errors == 0


def test_a_second_pass_is_weighed_by_what_it_makes_right(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    emissions = [spoken("SEA", {2: "E"})] * 2  # to the search they are the same
    said = ["SEA", "SEE"]
    build = partial(BeamDecoder, words=words)

    class Second(Rescorer):
        def __init__(self) -> None:
            pass

        def log_probs(self, found: Sequence[Alternatives]) -> list[list[float]]:
            return [
                [-4.0 * (hypothesis.words != (word,)) for hypothesis in hypotheses]
                for hypotheses, word in zip(found, said, strict=True)
            ]

    tuning = search(DecodeConfig(), build, emissions, said, Second())
    assert tuning.best.score.errors == 1
    assert tuning.second_pass == ErrorRate(0, 0, 0, 2)
    decode = tuning.best.decode
    assert decode.rescore_weight > 0
    assert f"second pass: rescore_weight {decode.rescore_weight:.2f}" in tuning.summary()
    alone = search(DecodeConfig(), build, emissions, said)
    assert alone.second_pass is None
    assert "second pass" not in alone.summary()


def test_confidences_are_fitted_to_what_was_right(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    emissions = [spoken("SEE", {})] * 40
    references = ["SEE"] * 20 + ["THE"] * 20  # as clearly heard, and wrong half of the time
    build = partial(BeamDecoder, words=words)
    tuning = search(DecodeConfig(), build, emissions, references)
    (said,) = BeamDecoder(tuning.best.decode, words)(emissions[0], torch.tensor([6]))
    (sure,) = confidences(said, emissions[0][0], tuning.best.decode.confidence)
    assert sure == pytest.approx(0.5, abs=0.03)
    assert tuning.calibration_error < 0.03


def test_the_smallest_penalty_with_the_fewest_errors_is_taken() -> None:
    tokenizer = CharacterTokenizer()

    def heard(text: str, unsure: str, by: float) -> torch.Tensor:
        log_probs = spoken(text, {})
        log_probs[0, 1, tokenizer.units.index(unsure)] = log_probs[0, 1, 0] - by
        return log_probs

    unsure = heard("S", "O", 0.62)  # after the S, a little less likely than blank
    assert fit_blank_penalty(tokenizer, [unsure], ["SO"]) == 0.65
    assert fit_blank_penalty(tokenizer, [unsure], ["S"]) == 0.0
    assert fit_blank_penalty(tokenizer, [unsure] * 3, ["SO", "S", "SO"]) == 0.65


def test_what_has_no_units_does_not_fit_a_penalty() -> None:
    class Letters(CharacterTokenizer):
        def encode(self, text: str) -> list[int]:
            raise DataError("no units")

    assert fit_blank_penalty(Letters(), [spoken("SEE", {})], ["SO"]) == 0.0


def test_tune_lm_hears_every_utterance_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", noise, SAMPLE_RATE)
    noise[: SAMPLE_RATE // 2] = 0  # contrast: this may be speech
    soundfile.write(tmp_path / "sound.wav", noise, SAMPLE_RATE)
    (tmp_path / "other.arpa").write_text(ARPA)
    packaged = load_model_dir(tiny_model)
    with pytest.raises(DataError, match=r"lm\.arpa"):
        tune_lm(packaged, [Utterance("a", "none.wav", 1.0, "THE SEA", "")])
    with pytest.raises(DataError, match="none"):
        tune_lm(packaged, [])
    with pytest.raises(DataError, match="transcripts with words"):
        tune_lm(packaged, [Utterance("a", "none.wav", 1.0, "", "")])
    other = tmp_path / "other.arpa"
    unheard = Utterance("a", str(tmp_path / "noise.wav"), 1.0, "THE SEA", "")
    with pytest.raises(DataError, match="expected speech"):
        tune_lm(packaged, [unheard], language_model=other)
    real = asr.tune._emissions

    def hear(packaged: Packaged, utterance: Utterance) -> torch.Tensor:
        heard = real(packaged, utterance)  # of a network that has learnt nothing
        return spoken("THE SEA", {}) if heard.shape[1] else heard

    monkeypatch.setattr("asr.tune._emissions", hear)
    calls: list[int] = []
    utterances = [unheard, Utterance("b", str(tmp_path / "sound.wav"), 1.0, "THE SEA", "")]
    monkeypatch.setattr("asr.tune.fit_blank_penalty", lambda *_: 1.25)
    tuning = tune_lm(packaged, utterances, language_model=other, on_progress=calls.append)
    assert {trial.decode.blank_penalty for trial in tuning.trials} == {1.25}
    assert tuning.best.score.reference_length == 4
    assert calls[:2] == [1, 2]
    assert calls[2:] == list(range(1, len(tuning.trials) + 1))


def test_a_long_recording_is_heard_in_pieces(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 45 * SAMPLE_RATE)
    soundfile.write(tmp_path / "long.wav", noise, SAMPLE_RATE)
    lengths = []

    def emissions(waveforms: torch.Tensor, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        lengths.append(waveforms.shape[1])
        return waveforms[..., None], samples

    network = SimpleNamespace(config=Config(name="test"), emissions=emissions)
    utterance = Utterance("a", str(tmp_path / "long.wav"), 45.0, "A", "")
    heard = asr.tune._emissions(cast(Any, network), utterance)
    assert heard[0, :, 0].tolist() == read_audio(utterance.audio).tolist()
    assert max(lengths) <= 20 * SAMPLE_RATE


def test_weights_are_saved_in_the_model_directory(tiny_model: Path, tmp_path: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "lm.arpa").write_text(ARPA)
    names = {path.name for path in tmp_path.iterdir()}
    packaged = load_model_dir(tmp_path)
    expected = DecodeConfig(
        method="beam", lm_weight=2.25, word_score=-0.5, prior_weight=0.5, log_priors=(-0.5, -1.0)
    )
    save_weights(packaged, Trial(expected, ErrorRate()))
    saved = load_config(tmp_path / "config.toml")
    assert saved == packaged.config.model_copy(update={"decode": expected})
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_directory_without_language_model_is_still_decoded_greedily(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Tuned with another language model, it would ask for one of its own ever after."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (tmp_path / "other.arpa").write_text(ARPA)
    tuned = DecodeConfig(method="beam", lm_weight=2.25)
    save_weights(load_model_dir(model), Trial(tuned, ErrorRate()))
    assert isinstance(load_model(model, "cpu").decoder, GreedyDecoder)
    searching = load_model(model, "cpu", language_model=tmp_path / "other.arpa")
    assert searching.packaged.config.decode.lm_weight == 2.25


def test_words_that_nobody_misses_are_taken_for_noise() -> None:
    def said(text: str, *confidence: float) -> Hypothesis:
        return Hypothesis(tuple(text.split()), (), (), 0.0, (), confidence=confidence)

    noise, wrong, right = said("SEA", 0.32), said("A SEA", 0.1, 0.38), said("SEE A", 0.2, 0.46)
    found = [noise, wrong, right, said("")]
    references = ["", "THE TOE", "SEE A", ""]
    assert fit_min_confidence(found, references) == 0.45
    assert fit_min_confidence([right], ["SEE A"]) == 0.45
    assert fit_min_confidence([wrong], ["A SEA"]) == 0.35
    assert fit_min_confidence([noise], [""]) == 0.5  # the highest
    assert fit_min_confidence([], []) == 0.5


def test_priors_make_up_for_a_network_that_prefers_blank(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    words = SearchProcesses(Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa"), 1)
    clear = spoken("THE SEA", {})
    hesitant = clear.clone()
    hesitant[..., 0] += 9.0  # blank wins wherever it can
    hesitant = hesitant.log_softmax(-1)
    priors = tuple(hesitant[0].exp().mean(0).log().tolist())

    def said(weight: float) -> tuple[str, ...]:
        config = DecodeConfig(lm_weight=0.5, prior_weight=weight, log_priors=priors)
        return BeamDecoder(config, words)(hesitant, torch.tensor([14]))[0].words

    assert said(0.0) != ("THE", "SEA")
    assert said(1.0) == ("THE", "SEA")
    with pytest.raises(DataError, match="expected 39, one a unit, got 2"):
        BeamDecoder(DecodeConfig(log_priors=(0.0, 0.0)), words)
