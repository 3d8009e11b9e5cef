"""Aligning a text: the sample's words are where its transcript has them, whatever asks for them."""

import itertools
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from asr.align import Aligned, align, read_text
from asr.cli import app
from asr.errors import AudioError, DataError
from asr.loading import load_model
from asr.model_dir import Packaged, load_model_dir

torch.set_num_threads(1)

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = DOCS / "sample.flac"
TEXT = (DOCS / "sample.txt").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="module")
def packaged() -> Packaged:
    return load_model_dir()


@pytest.fixture(scope="module")
def aligned(packaged: Packaged) -> Aligned:
    return align(packaged, SAMPLE, TEXT)


def test_words_are_where_the_transcript_has_them(aligned: Aligned) -> None:
    recognised = load_model(device="cpu").transcribe(SAMPLE).words
    assert [word.text for word in aligned.words] == [word.text for word in recognised]
    for ours, theirs in zip(aligned.words, recognised, strict=True):
        # Where phones are unsure the two may differ by a few frames of 40 ms.
        assert abs(ours.start - theirs.start) < 0.15
        assert abs(ours.end - theirs.end) < 0.15


def test_times_are_in_order_and_inside(aligned: Aligned) -> None:
    units = [unit for word in aligned.words for unit in word.units]
    times = [time for unit in units for time in (unit.start, unit.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= aligned.duration
    assert all(unit.start < unit.end for unit in units)
    assert all(0 < unit.confidence <= 1 for unit in units)


def test_the_path_says_the_phones(aligned: Aligned, packaged: Packaged) -> None:
    path = aligned.path.unique_consecutive()
    said = [packaged.tokenizer.units[unit] for unit in path if unit != 0]
    assert said == [unit.text for word in aligned.words for unit in word.units]
    assert len(aligned.path) == len(aligned.log_probs) == len(aligned.times)


def test_a_wrong_text_is_less_likely(packaged: Packaged, aligned: Aligned) -> None:
    wrong = align(packaged, SAMPLE, " ".join(reversed(TEXT.split())))

    def confidence(aligned: Aligned) -> float:
        return sum(word.confidence for word in aligned.words) / len(aligned.words)

    assert confidence(wrong) < 0.5 * confidence(aligned)


def test_characters_have_separators_between_words(tiny_model: Path) -> None:
    aligned = align(load_model_dir(tiny_model), SAMPLE, "THE FOX")
    assert [[unit.text for unit in word.units] for word in aligned.words] == [[*"THE"], [*"FOX"]]
    assert "|" in {load_model_dir(tiny_model).tokenizer.units[unit] for unit in aligned.path}


def test_a_long_recording_is_aligned_as_one(tmp_path: Path, packaged: Packaged) -> None:
    import soundfile

    samples, rate = soundfile.read(SAMPLE, dtype="float32")
    path = tmp_path / "long.wav"
    soundfile.write(path, [*samples] * 4, rate)
    aligned = align(packaged, path, " ".join([TEXT] * 4))
    n = len(TEXT.split())
    for before, after in itertools.pairwise(aligned.words):
        assert before.end <= after.start
    starts = [word.start for word in aligned.words]
    for turn in range(1, 4):
        shift = turn * len(samples) / rate
        for first, later in zip(starts[:n], starts[turn * n : (turn + 1) * n], strict=True):
            assert abs(later - first - shift) < 0.25


def test_a_text_too_long_for_the_recording_is_an_error(packaged: Packaged) -> None:
    with pytest.raises(DataError, match=r"can be said in 8\.0 s, 199 frames .* 230 words"):
        align(packaged, SAMPLE, " ".join([TEXT] * 10))


def test_a_text_is_words_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The old-tree\nand told.\n")
    assert read_text(str(path)) == "THE OLD TREE AND TOLD"
    assert read_text("The old tree.") == "THE OLD TREE"
    assert read_text("U.S") == "U S"
    assert read_text("the " * 2000).startswith("THE THE")  # longer than a name can be
    spaced = path.rename(tmp_path / "my text")
    assert read_text(str(spaced)) == "THE OLD TREE AND TOLD"
    with pytest.raises(DataError, match=r"absent\.txt: cannot read the text: No such file"):
        read_text(str(tmp_path / "absent.txt"))
    with pytest.raises(DataError, match=r"my absent\.txt"):
        read_text("my absent.txt")
    with pytest.raises(DataError, match="expected a text to align"):
        read_text("...")


def test_a_pipe_is_read_and_a_folder_is_not_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"The old tree\n")
    os.close(writing)
    assert read_text(f"/dev/fd/{reading}") == "THE OLD TREE"
    os.close(reading)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree").mkdir()
    assert read_text("tree") == "TREE"
    with pytest.raises(DataError, match="cannot read the text: Is a directory"):
        read_text("./tree")


def _asr(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["align", *map(str, arguments)], prog_name="asr")


def test_json_has_words_and_units(aligned: Aligned) -> None:
    result = _asr(SAMPLE, DOCS / "sample.txt", "--device", "cpu")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["text"] == TEXT
    assert printed["words"][1]["text"] == "CHILDREN"
    assert printed["words"][1]["start"] == pytest.approx(aligned.words[1].start, abs=1e-3)
    assert [unit["text"] for unit in printed["words"][0]["units"]] == ["DH", "AH"]


def test_a_textgrid_covers_the_recording(aligned: Aligned) -> None:
    result = _asr(SAMPLE, TEXT, "--format", "textgrid", "--device", "cpu")
    assert result.stdout == aligned.to_textgrid()
    for tier in result.stdout.split("item [")[2:]:
        size = int(re.findall(r"intervals: size = (\d+)", tier)[0])
        starts, ends = (
            re.findall(rf"^ {{12}}{name} = (\S+)", tier, re.M) for name in ("xmin", "xmax")
        )
        assert len(starts) == len(ends) == size
        assert starts[1:] == ends[:-1]
        assert float(starts[0]) == 0
        assert float(ends[-1]) == pytest.approx(aligned.duration, abs=1e-6)
        texts = [text for text in re.findall(r'text = "(.*)"', tier) if text]
        assert texts in (TEXT.split(), [u.text for word in aligned.words for u in word.units])


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "path.png"
    assert _asr(SAMPLE, TEXT, "--picture", path, "--device", "cpu").exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_another_kind_is_refused_before_the_work(tmp_path: Path) -> None:
    result = _asr(SAMPLE, TEXT, "--picture", tmp_path / "path.jpg", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "expected a file NAME.png" in result.stderr
    assert not list(tmp_path.iterdir())


def test_letters_of_another_script_are_not_passed_over() -> None:
    with pytest.raises(DataError, match="letters of A-Z, got ПРИВЕТ"):
        read_text("he said привет")


def test_without_matplotlib_a_picture_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = _asr(SAMPLE, TEXT, "--picture", tmp_path / "path.png", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "blstm-asr[train]" in result.stderr


def test_a_recording_that_is_none_is_named(packaged: Packaged, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"absent\.wav"):
        align(packaged, tmp_path / "absent.wav", TEXT)


def test_a_picture_that_cannot_be_written_loses_no_times(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _asr(SAMPLE, TEXT, "--picture", tmp_path / "file" / "path.png", "--device", "cpu")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["text"] == TEXT
