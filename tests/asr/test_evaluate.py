import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from typer.testing import CliRunner

from asr.cli import app
from asr.config import Config, UnitConfig
from asr.data import Utterance
from asr.decode import GreedyDecoder
from asr.errors import DataError
from asr.evaluate import _joined, _Recognised, evaluate
from asr.metrics import ErrorRate
from asr.model_dir import Packaged

UNITS = ("<blk>", "A", "B", "C")
BLOCK = 160  # samples: the stub's output frame
LEVEL = 0.1


class Letters:
    """A tokenizer whose every unit is a word of one letter, and a phone too."""

    units = UNITS

    def encode(self, text: str) -> list[int]:
        return [UNITS.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(UNITS[unit] for unit in ids)


@dataclass(frozen=True)
class Echo:
    """A model that hears unit k in a block of samples of the level k / 10."""

    config: Config
    tokenizer = Letters()
    device = "cpu"

    def emissions(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        units = (waveforms.unfold(1, BLOCK, BLOCK).mean(-1) / LEVEL).round().long()
        log_probs = torch.nn.functional.one_hot(units, len(UNITS)).float().log()
        return log_probs, lengths // BLOCK


@dataclass(frozen=True)
class Words:
    words: tuple[str, ...]
    tokens: tuple[int, ...]


def always_a(log_probs: Tensor, lengths: Tensor) -> list[Words]:
    return [Words(("A",), (UNITS.index("A"), UNITS.index("C"))) for _ in lengths]


def model(kind: str) -> Packaged:
    config = Config(name="echo", units=UnitConfig(kind=cast(Any, kind)))
    return cast(Packaged, Echo(config))


def say(folder: Path, identity: str, sounds: str, text: str) -> Utterance:
    """A recording in which `sounds` are heard, with `text` as its transcript."""
    path = folder / f"{identity}.wav"
    levels = [
        LEVEL * UNITS.index(sound) for letter in sounds.split() for sound in (letter, UNITS[0])
    ]
    waveform = np.repeat(np.array(levels, dtype=np.float32), BLOCK)
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    return Utterance(identity, str(path), len(waveform) / 16000, text, "speaker")


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    return [
        say(tmp_path, "right", "A B C", "A B C"),
        say(tmp_path, "one-wrong", "A B B A", "A B C A"),
        say(tmp_path, "two-wrong", "A B C A B", "B C A"),
    ]


def test_words_of_a_subword_model(utterances: list[Utterance]) -> None:
    result = evaluate(model("subword"), utterances)
    assert result.scores["WER"] == ErrorRate(
        substitutions=1, deletions=0, insertions=2, reference_length=10
    )
    assert list(result.scores) == ["WER", "CER"]
    assert [row.id for row in result.rows] == ["two-wrong", "one-wrong", "right"]
    assert result.rows[1].hypothesis == "A B B A"
    assert result.audio_seconds == pytest.approx(sum(u.seconds for u in utterances))
    assert result.rtfx > 0


def test_phones_of_a_phoneme_model_without_a_decoder(utterances: list[Utterance]) -> None:
    result = evaluate(model("phoneme"), utterances)
    assert list(result.scores) == ["PER"]
    assert result.scores["PER"].errors == 3
    assert result.rows[0].hypothesis == "A B C A B"


def test_phoneme_model_with_a_decoder_gives_both(utterances: list[Utterance]) -> None:
    result = evaluate(model("phoneme"), utterances, cast(Any, always_a))
    assert result.scores["PER"].errors == 3
    assert result.scores["PER beam"].errors == 5  # B, then B and A, then B or A, and A
    assert result.scores["WER"].errors == 7
    assert {row.hypothesis for row in result.rows} == {"A"}
    assert [result.search_of(name) for name in result.scores] == ["greedy", *3 * ["beam"]]


@dataclass(frozen=True)
class Unsure(Echo):
    def emissions(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, frames = super().emissions(waveforms, lengths)
        return (0.1 + 0.9 * log_probs.exp()).log(), frames


def test_the_greedy_path_has_the_penalty_of_the_model(utterances: list[Utterance]) -> None:
    config = model("phoneme").config
    decode = config.decode.model_copy(update={"blank_penalty": 3.0})
    for penalty, errors in ((config.decode, 3), (decode, 8)):  # an A for each blank
        packaged = cast(Packaged, Unsure(config.model_copy(update={"decode": penalty})))
        assert evaluate(packaged, utterances).scores["PER"].errors == errors


@pytest.mark.parametrize("kind", ["phoneme", "subword"])
def test_a_greedy_decoder_is_the_greedy_path(utterances: list[Utterance], kind: str) -> None:
    """Else phones were compared with words, and the score was called that of a beam search."""
    packaged = model(kind)
    result = evaluate(packaged, utterances, GreedyDecoder(packaged.tokenizer))
    assert (result.scores, result.search) == (evaluate(packaged, utterances).scores, "greedy")


@pytest.mark.parametrize("batch_seconds", [0.001, 0.09, 100.0])
def test_batches_change_nothing(utterances: list[Utterance], batch_seconds: float) -> None:
    without_duration = [replace(utterance, seconds=0.0) for utterance in utterances]
    expected = evaluate(model("subword"), utterances, batch_seconds=100.0)
    result = evaluate(model("subword"), without_duration, batch_seconds=batch_seconds)
    assert result.rows == expected.rows


def test_batches_keep_to_the_cap(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    emissions = Echo.emissions

    def watched(self: Echo, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(waveforms.shape))
        return emissions(self, waveforms, lengths)

    monkeypatch.setattr(Echo, "emissions", watched)
    evaluate(model("subword"), utterances, batch_seconds=16 * BLOCK / 16000)
    assert sorted(shapes) == [(1, 10 * BLOCK), (2, 8 * BLOCK)]

    shapes.clear()
    longest_first = [replace(utterance, seconds=0.0) for utterance in reversed(utterances)]
    evaluate(model("subword"), longest_first, batch_seconds=20 * BLOCK / 16000)
    assert shapes == [(2, 10 * BLOCK), (1, 6 * BLOCK)]


def test_unreadable_audio_is_named_and_the_rest_done(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    broken = replace(utterances[1], id="broken", audio=str(tmp_path / "absent.wav"))
    done = []
    result = evaluate(model("subword"), [*utterances, broken], on_progress=done.append)
    assert list(result.failures) == ["broken"]
    assert "absent.wav" in result.failures["broken"]
    assert len(result.rows) == 3
    assert done[-1] == 4


def test_a_long_recording_is_its_pieces_in_order(tmp_path: Path) -> None:
    """As it is transcribed; beside others of which two have the same name."""
    noise = np.random.default_rng(0).uniform(-LEVEL / 9, LEVEL / 9, 45 * 16000)
    soundfile.write(tmp_path / "long.wav", noise, 16000, subtype="FLOAT")
    long = Utterance("long", str(tmp_path / "long.wav"), 45.0, "B C A", "speaker")
    short = say(tmp_path, "short", "A", "B")
    longest = 0

    def heard(log_probs: Tensor, lengths: Tensor) -> list[Words]:
        nonlocal longest
        longest = max(longest, log_probs.shape[1])
        return always_a(log_probs, lengths)

    result = evaluate(model("subword"), [short, long, short], cast(Any, heard))
    said = [(row.id, row.hypothesis) for row in result.rows]
    assert said[1:] == [("short", "A"), ("short", "A")]
    assert said[0] in (("long", "A A A"), ("long", "A A A A"))
    assert longest <= 20 * 16000 / BLOCK
    assert result.audio_seconds == pytest.approx(45 + 2 * short.seconds)


def test_pieces_are_joined_in_their_order() -> None:
    utterance = Utterance("long", "long.wav", 45.0, "A B C", "speaker")
    pieces = [
        _Recognised(utterance, 9, 4, "c", "C", "K"),
        _Recognised(utterance, 0, 5, "a", "A", ""),
        _Recognised(utterance, 5, 4, "", "B", "B IY"),
    ]
    assert _joined(pieces) == _Recognised(utterance, 0, 13, "a c", "A B C", "B IY K")


def test_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one utterance, got none"):
        evaluate(model("subword"), [])
    silent = Utterance("a", str(tmp_path / "absent.wav"), 1.0, "", "")
    with pytest.raises(DataError, match="transcripts with words, got none"):
        evaluate(model("subword"), [silent])
    absent = replace(silent, text="A")
    with pytest.raises(DataError, match=r"none of 1 utterances is readable.*absent\.wav"):
        evaluate(model("subword"), [absent])


def test_rows_are_written_worst_first(utterances: list[Utterance], tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.tsv"
    evaluate(model("subword"), utterances).write_rows(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["id"], row["errors"]) for row in rows] == [
        ("two-wrong", "2"),
        ("one-wrong", "1"),
        ("right", "0"),
    ]
    assert rows[0]["reference"] == "B C A"
    assert rows[0]["rate"] == "0.6667"
    assert [p.name for p in path.parent.iterdir()] == ["rows.tsv"]


def test_summary_and_json_agree(utterances: list[Utterance]) -> None:
    result = evaluate(model("subword"), utterances)
    values = result.to_dict()
    assert values["scores"]["WER"]["rate"] == pytest.approx(0.3)
    assert values["utterances"] == 3
    line = "WER   30.00 %  greedy  (1 substitutions, 0 deletions, 2 insertions in 10)"
    assert result.summary().splitlines()[0] == line


def test_rows_that_cannot_be_written_lose_no_scores(tiny_model: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    data = tmp_path / "data.tsv"
    data.write_text("path\ttranscript\na.wav\tA\n")
    command = ["evaluate", tiny_model, data, "--json", "--out", data / "rows.tsv"]
    result = CliRunner().invoke(app, [str(part) for part in command], prog_name="asr")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["utterances"] == 1
    assert str(data) in result.stderr


@pytest.mark.parametrize("command", ["evaluate", "align"])
def test_where_nobody_reads_the_scores_the_file_is_written(
    tiny_model: Path, tmp_path: Path, command: str
) -> None:
    audio, data, made = tmp_path / "a.wav", tmp_path / "data.tsv", tmp_path / "made.png"
    soundfile.write(audio, np.zeros(8000), 16000)
    data.write_text("path\ttranscript\na.wav\tA\n")
    given = {"evaluate": [tiny_model, data, "--out"], "align": [audio, "A", "--model", tiny_model]}
    arguments = [*given[command], *(["--picture"] if command == "align" else []), made]
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "asr", command, *map(str, arguments)]
    subprocess.run(line, stdout=writing, check=False)
    os.close(writing)
    assert made.stat().st_size > 0
