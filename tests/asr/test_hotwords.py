"""Hotwords and a language model of one's own: what is expected is found where it was said."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from asr.cli import app
from asr.config import DecodeConfig
from asr.decode import build_decoder
from asr.errors import ConfigError, DataError
from asr.hotwords import bonuses_of, read_hotwords
from asr.lexicon import Lexicon
from asr.loading import load_model
from asr.tokenizer import CharacterTokenizer, PhonemeTokenizer, Tokenizer
from asr.word_graph import load_word_graph

torch.set_num_threads(1)

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.flac"
ARPA = """\\data\\
ngram 1=6
ngram 2=1

\\1-grams:
-99\t<s>
-1.0\t</s>
-3.0\t<unk>
-0.8\tSEA
-1.5\tSEE
-2.0\tTOE

\\2-grams:
-2.0\t<s> TOE

\\end\\
"""
PHONEMES = PhonemeTokenizer(
    Lexicon([("SEA", ["S", "IY"]), ("SEE", ["S", "IY"]), ("TOE", ["T", "OW"])])
)


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def _emissions(tokenizer: Tokenizer, text: str, frames: int = 1) -> Tensor:
    units = [index for unit in tokenizer.encode(text) for index in (*[unit] * frames, 0)]
    probabilities = torch.full((1, len(units), len(tokenizer.units)), 0.1 / len(tokenizer.units))
    probabilities[0, torch.arange(len(units)), torch.tensor(units)] = 0.9
    return probabilities.log()


def _decode(
    tokenizer: Tokenizer,
    lm: Path,
    said: Tensor,  # emissions
    hotwords: dict[str, float],
    **settings: Any,
) -> tuple[tuple[str, ...], float]:
    config = DecodeConfig(method="beam", lm_weight=0.5, **settings)
    decoder = build_decoder(config, tokenizer, lm.parent, hotwords=hotwords)
    (found,) = decoder(said, torch.tensor([said.shape[1]]))
    return found.words, found.score


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("tokenizer", [PHONEMES, CharacterTokenizer()], ids=["phone", "character"])
def test_the_bonus_is_what_is_added(tokenizer: Tokenizer, lm: Path, frames: int) -> None:
    said = _emissions(tokenizer, "TOE SEE", frames)
    settings = {"beam_size_token": len(tokenizer.units), "beam_size": 1000, "beam_threshold": 50.0}
    words, score = _decode(tokenizer, lm, said, {}, **settings)
    hotwords = {"SEE": 1.5, "SEA": 0.1}
    boosted_words, boosted = _decode(tokenizer, lm, said, hotwords, **settings)
    assert words == (("TOE", "SEE") if tokenizer is not PHONEMES else ("TOE", "SEA"))
    assert boosted_words == ("TOE", "SEE")
    added = 1.5 - (0.7 if tokenizer is PHONEMES else 0)
    assert boosted - score == pytest.approx(0.5 * added, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_bonus_for_all_words_leaves_the_same_paths(lm: Path, seed: int) -> None:
    noise = torch.randn(1, 9, len(PHONEMES.units), generator=torch.Generator().manual_seed(seed))
    wide = {"beam_size_token": len(PHONEMES.units), "beam_size": 3000, "beam_threshold": 50.0}
    words, score = _decode(PHONEMES, lm, noise.log_softmax(-1), {}, **wide)
    hotwords = dict.fromkeys(["SEA", "SEE", "TOE"], 0.1)
    assert _decode(PHONEMES, lm, noise.log_softmax(-1), hotwords, **wide) == (
        words,
        pytest.approx(score + 0.5 * 0.1 * len(words), abs=1e-4),
    )
    assert words


def test_hotwords_leave_room_for_what_else_was_said(lm: Path) -> None:
    """Of each frame the likeliest units are read, and what ends a hotword seems likelier still."""
    spellings = ["S IY", "T OW", "OW IY S S", "IY S T T", "S S T OW", "T T OW IY"]
    others = {f"NAME{letter}": 14.0 for letter in "ABCD"}
    words = zip(["SEA", "TOE", *others], map(str.split, spellings), strict=True)
    tokenizer = PhonemeTokenizer(Lexicon(words))
    said = _emissions(tokenizer, "TOE SEA")
    assert _decode(tokenizer, lm, said, others, beam_size_token=1)[0] == ("TOE", "SEA")


def test_a_word_that_the_language_model_lacks_is_found(lm: Path) -> None:
    assert _decode(PHONEMES, lm, _emissions(PHONEMES, "TEA TOE"), {})[0] != ("TEA", "TOE")
    assert _decode(PHONEMES, lm, _emissions(PHONEMES, "TEA TOE"), {"TEA": 2.0})[0] == ("TEA", "TOE")
    assert _decode(
        CharacterTokenizer(), lm, _emissions(CharacterTokenizer(), "TEA TOE"), {"TEA": 2.0}
    )[0] == ("TEA", "TOE")


def test_of_more_hotwords_that_sound_alike_than_a_tree_holds_one_is_found(lm: Path) -> None:
    hotwords = dict.fromkeys(["SEA", "TEE", "TEA", "TE", "TIE", "TI", "TEY", "TEIE", "TEEE"], 4.0)
    lexicon = Lexicon((word, ["S" if word == "SEA" else "T", "IY"]) for word in hotwords)
    tokenizer = PhonemeTokenizer(lexicon)
    words, _ = _decode(tokenizer, lm, _emissions(tokenizer, "TEA"), hotwords)
    assert words[0] in hotwords


def test_a_word_that_was_not_said_is_not_found(lm: Path) -> None:
    assert _decode(PHONEMES, lm, _emissions(PHONEMES, "TOE SEA"), {"ZEBRA": 4.0})[0] == (
        "TOE",
        "SEA",
    )


def test_words_may_have_different_bonuses(lm: Path) -> None:
    graph = load_word_graph(PHONEMES, lm, {"SEE": 1.0, "TOE": 2.0, "TEA": 1.0})
    ends = [PHONEMES.units.index(unit) for unit in ("IY", "OW")]
    columns = [
        (len(PHONEMES.units) * late + end, bonus)
        for late in (1, 2)
        for end, bonus in zip(ends, (1.0, 2.0), strict=True)
    ]
    assert sorted(graph.bonuses) == sorted(columns)  # SEE and TEA share theirs
    assert type(graph.language_model).__name__ == "KenLM"  # no detour through Python
    said = {"SEE": 1.0, "SEA": 0.1, "TOE": -3.0}
    assert _decode(PHONEMES, lm, _emissions(PHONEMES, "TOE SEE"), said)[0][-1] == "SEE"


def test_a_file_holds_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Zebra-fish\nson\nSON\n")
    assert read_hotwords(path) == ("ZEBRA", "FISH", "SON")
    path.write_text("\n - \n")
    with pytest.raises(DataError, match=r"words\.txt: expected hotwords"):
        read_hotwords(path)
    path.write_text("garçon\nžluťoučký привет\n", encoding="utf-8")
    with pytest.raises(DataError, match="letters of A-Z, got ПРИВЕТ"):
        read_hotwords(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"words\.txt: expected words in UTF-8"):
        read_hotwords(path)


def test_greedy_decoding_has_no_hotwords() -> None:
    with pytest.raises(ConfigError, match="got 'greedy'"):
        load_model(device="cpu", method="greedy", hotwords={"SON": 4.0})


@pytest.mark.parametrize("bonus", [math.nan, math.inf, -101, None, "4"])
def test_a_bonus_is_a_number(bonus: Any) -> None:
    with pytest.raises(ConfigError, match="hotwords: expected bonuses from -100 to 100, got"):
        load_model(device="cpu", hotwords={"SON": bonus})


def test_words_alone_have_the_usual_bonus() -> None:
    assert bonuses_of({"zebra-fish": 1}) == {"ZEBRA": 1, "FISH": 1}
    assert bonuses_of(["son", "Zebra"]) == {"SON": 4.0, "ZEBRA": 4.0}
    assert bonuses_of([]) == {}
    assert bonuses_of({"son": np.float32(2)}) == {"SON": 2.0}


@pytest.mark.parametrize("wrong", ["son", None, 3, [b"son"], {3: 4.0}])
def test_what_are_no_words_is_said(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="hotwords: expected words, or words with numbers"):
        load_model(device="cpu", hotwords=wrong)


def test_letters_of_another_script_are_no_hotwords() -> None:
    with pytest.raises(ConfigError, match="hotwords: expected letters of A-Z, got ПРИВЕТ"):
        bonuses_of(["son", "привет"])


def _asr(*arguments: object) -> Result:
    command = ["transcribe", str(SAMPLE), "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(app, command, prog_name="asr")


def test_the_command_line_takes_hotwords(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("son\n")
    assert "MORNING SUN" in _asr().stdout
    assert "MORNING SON" in _asr("--hotwords", path).stdout
    assert "MORNING SUN" in _asr("--hotwords", path, "--hotword-score", 0.5).stdout
    missing = _asr("--hotwords", tmp_path / "absent.txt")
    assert missing.exit_code == 1
    assert "absent.txt: no such file of hotwords" in missing.stderr


def test_the_command_line_takes_a_language_model(tmp_path: Path) -> None:
    """One with the words that are said, but for SON in the place of SUN."""
    path = tmp_path / "lm.arpa"
    said = SAMPLE.with_suffix(".txt").read_text().split()
    words = ["SON" if word == "SUN" else word for word in said]
    vocabulary = sorted(set(words))
    grams = ["-99\t<s>", "-1\t</s>", "-9\t<unk>", *(f"-0.5\t{word}" for word in vocabulary)]
    path.write_text(
        f"\\data\\\nngram 1={len(grams)}\nngram 2=1\n\n\\1-grams:\n"
        + "\n".join(grams)
        + "\n\n\\2-grams:\n-0.3\tOLD TREE\n\n\\end\\\n"
    )
    result = _asr("--lm", path)
    assert result.exit_code == 0
    assert set(result.stdout.split()) <= set(words)
    assert {"OLD", "TREE", "STORY", "SON"} <= set(result.stdout.split())
    assert "no such language model" in _asr("--lm", tmp_path / "absent.arpa").stderr
