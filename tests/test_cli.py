"""What a user sees: results on stdout, one line for each failure on stderr, an exit status."""

import errno
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from asr.__main__ import main
from asr.cli import app


def asr(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="asr")


def error_of(result: Result, status: int = 1) -> str:
    """The one line on stderr of a command that failed as a command should."""
    assert result.exit_code == status
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("asr: error: ")
    return line.removeprefix("asr: error: ")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    soundfile.write(path, noise, 16000)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is not a recording\n" * 20)
    names = ("absent.wav", "empty.wav", "text.wav")
    return {name: tmp_path / name for name in names}


def manifest(folder: Path, *recordings: Path) -> Path:
    path = folder / "test.tsv"
    path.write_text("path\ttranscript\n" + "".join(f"{r}\tTHE FOX\n" for r in recordings))
    return path


def test_version() -> None:
    result = asr("--version")
    assert result.exit_code == 0
    assert result.stdout == f"asr {version('blstm-asr')}\n"


def test_help_lists_the_commands() -> None:
    result = asr("--help")
    assert result.exit_code == 0
    for command in (
        "prepare",
        "train",
        "evaluate",
        "transcribe",
        "align",
        "tune-lm",
        "info",
        "bench",
        "bench-training",
    ):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["transcrbe"], "transcribe"),
        (["prepare", "librispech"], "librispeech"),
        (["transcribe", "a.wav", "--modle", "x"], "--model"),
        (["train", "recipe.toml", "--epoch", "3"], "--epochs"),
    ],
)
def test_a_typo_gets_the_nearest_name(arguments: list[str], nearest: str) -> None:
    result = asr(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert nearest in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["absent.wav", "empty.wav", "text.wav"])
def test_a_file_that_is_not_audio_is_named(
    name: str, broken: dict[str, Path], tiny_model: Path
) -> None:
    result = asr("transcribe", broken[name], "--model", tiny_model)
    assert str(broken[name]) in error_of(result)
    assert result.stdout == ""


def test_good_files_are_done_though_others_are_bad(
    broken: dict[str, Path], speech: Path, tiny_model: Path
) -> None:
    files = [broken["empty.wav"], speech, broken["text.wav"], speech]
    result = asr("transcribe", *files, "--model", tiny_model)
    assert result.exit_code == 1
    assert [line.startswith(f"{speech}: ") for line in result.stdout.splitlines()] == [True, True]
    errors = result.stderr.splitlines()
    assert ["empty.wav" in errors[0], "text.wav" in errors[1]] == [True, True]
    assert len(errors) == 2


def test_one_file_prints_its_text_alone(speech: Path, tiny_model: Path) -> None:
    alone = asr("transcribe", speech, "--model", tiny_model)
    among = asr("transcribe", speech, speech, "--model", tiny_model)
    assert alone.exit_code == 0
    assert among.stdout == 2 * f"{speech}: {alone.stdout}"


def test_json_is_an_object_a_line(speech: Path, tiny_model: Path) -> None:
    result = asr("transcribe", speech, speech, "--model", tiny_model, "--format", "json")
    assert result.exit_code == 0
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first == second
    assert first["file"] == str(speech)
    assert first["duration"] == pytest.approx(0.5)
    assert {"text", "words"} <= set(first)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path, speech: Path, tiny_model: Path) -> None:
    for command in (["transcribe", speech, "--model"], ["info", "--model"]):
        assert "no such model directory" in error_of(asr(*command, tmp_path / "absent"))
        assert "lacks config.toml" in error_of(asr(*command, tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", "name = "),
        ("config.toml", 'name = "x"\n[model]\nhiden_size = 3\n'),
        ("config.toml", 'name = "x"\n[model]\nhidden_size = 5\n'),
        ("model.safetensors", "not weights"),
        ("model.safetensors", ""),
    ],
)
def test_a_damaged_model_is_one_line(
    name: str, content: str, tmp_path: Path, tiny_model: Path, speech: Path
) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    assert str(tmp_path) in error_of(asr("transcribe", speech, "--model", tmp_path))


def test_a_device_that_is_not_there(speech: Path, tiny_model: Path) -> None:
    result = asr("transcribe", speech, "--model", tiny_model, "--device", "gpu")
    assert "expected" in error_of(result)


def test_an_unknown_key_of_a_recipe_gets_the_nearest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "x"\n[model]\nhiden_size = 3\n')
    message = error_of(asr("train", recipe, "--data", tmp_path, "--out", tmp_path / "exp"))
    assert "model.hiden_size" in message
    assert "did you mean 'hidden_size'" in message
    assert not (tmp_path / "exp").exists()


def test_a_recipe_or_manifest_that_is_missing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    arguments = ("train", recipe, "--data", tmp_path, "--out", tmp_path / "exp")
    assert str(recipe) in error_of(asr(*arguments))
    recipe.write_text('name = "x"\n[data]\ntrain = ["absent"]\nvalid = ["absent"]\n')
    assert "absent.jsonl.gz" in error_of(asr(*arguments))


def test_flags_go_before_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "x"\n[train]\nepochs = 2\nseed = 3\n')
    given = []
    monkeypatch.setattr("asr.train.train", lambda config, *_, **__: given.append(config.train))
    arguments = ("train", recipe, "--data", tmp_path, "--out", tmp_path)
    for flags in ((), ("--epochs", 5), ("--seed", 0)):
        assert asr(*arguments, *flags).exit_code == 0
    assert [(train.epochs, train.seed) for train in given] == [(2, 3), (5, 3), (2, 0)]


def test_a_gpu_without_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "x"\n')

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB.\nMore.")

    monkeypatch.setattr("asr.train.train", fail)
    message = error_of(asr("train", recipe, "--data", tmp_path, "--out", tmp_path))
    assert "Tried to allocate 2 TiB.; train.max_frames" in message


def test_subtitles_are_of_one_file(speech: Path) -> None:
    sample = Path("docs/sample.flac")
    result = asr("transcribe", sample, "--format", "srt", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.startswith("1\n00:00:0")
    assert "THE CHILDREN" in result.stdout
    message = error_of(asr("transcribe", sample, speech, "--format", "vtt"))
    assert "--format vtt: expected one FILE, got 2" in message


def test_evaluate_hears_less_than_a_window(tmp_path: Path, speech: Path, tiny_model: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(50), 16000)
    for recordings in ([speech, tmp_path / "short.wav"], [tmp_path / "short.wav"]):
        result = asr("evaluate", tiny_model, manifest(tmp_path, *recordings), "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["utterances"] == len(recordings)


def test_evaluate_scores_what_it_can_read(
    tmp_path: Path, speech: Path, broken: dict[str, Path], tiny_model: Path
) -> None:
    data = manifest(tmp_path, speech, broken["text.wav"])
    rows = tmp_path / "rows.tsv"
    result = asr("evaluate", tiny_model, data, "--json", "--out", rows)
    assert "text.wav" in error_of(result)
    scores = json.loads(result.stdout)
    assert scores["utterances"] == 1
    assert scores["scores"]["WER"]["reference_length"] == 2
    assert len(rows.read_text().splitlines()) == 2


def test_evaluate_prints_scores_and_speed(tmp_path: Path, speech: Path, tiny_model: Path) -> None:
    result = asr("evaluate", tiny_model, manifest(tmp_path, speech))
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["WER", "CER", "RTFx"]


def test_a_manifest_that_is_none(tmp_path: Path, tiny_model: Path) -> None:
    assert "absent.tsv" in error_of(asr("evaluate", tiny_model, tmp_path / "absent.tsv"))
    data = tmp_path / "data.tsv"
    data.write_text("path\tsentence\n")
    assert "transcript" in error_of(asr("evaluate", tiny_model, data))


def test_a_file_that_cannot_be_written(tmp_path: Path, speech: Path, tiny_model: Path) -> None:
    data = manifest(tmp_path, speech)
    assert str(data) in error_of(asr("evaluate", tiny_model, data, "--out", data / "rows.tsv"))


def test_info_shows_size_and_card(tiny_model: Path) -> None:
    result = asr("info", "--model", tiny_model)
    assert result.exit_code == 0
    assert "character, " in result.stdout
    assert "WER on nothing: 100 %" in result.stdout


def test_a_card_need_not_be_utf8(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(b"caf\xe9\n")
    result = asr("info", "--model", tmp_path / "model")
    assert result.exit_code == 0
    assert "caf\ufffd" in result.stdout


def test_a_name_of_two_lines_is_one_line_of_an_error(tmp_path: Path, tiny_model: Path) -> None:
    error = error_of(asr("transcribe", tmp_path / "a\nb.wav", "--model", tiny_model))
    assert "a\\nb.wav: No such file" in error


def test_what_was_tuned_is_said_before_it_is_written(
    tmp_path: Path, speech: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "config.toml")

    found = SimpleNamespace(best=None, summary=lambda: "lm_weight 1.5")
    monkeypatch.setattr("asr.tune.tune_lm", lambda *_, **__: found)
    monkeypatch.setattr("asr.tune.save_weights", full)
    result = asr("tune-lm", tiny_model, manifest(tmp_path, speech))
    assert error_of(result) == "config.toml: No space left on device"
    assert result.stdout == "lm_weight 1.5\n"


def test_an_interrupt_is_one_line(
    speech: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.model_dir.load_model_dir", interrupted)
    result = asr("info", "--model", tiny_model)
    assert result.exit_code == 130
    assert result.stderr == "asr: interrupted\n"


def test_ctrl_c_before_there_is_a_command_is_no_traceback(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    ends: list[int] = []
    monkeypatch.setattr("os._exit", ends.append)
    monkeypatch.setattr("asr.cli.run", interrupted)
    main()
    assert ends == [130]
    assert capsys.readouterr().err == "asr: interrupted\n"


def test_without_an_output_nothing_is_begun(tiny_model: Path) -> None:
    command = f'"{sys.executable}" -m asr info --model "{tiny_model}" >&-'
    run = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "asr: error: standard output: closed\n")


@pytest.mark.parametrize("buffer", ["PYTHONUNBUFFERED=", "PYTHONUNBUFFERED=1"])
def test_a_full_disk_is_a_line_and_a_status(buffer: str, tiny_model: Path) -> None:
    for arguments in ("--help", f'info --model "{tiny_model}"'):
        command = f'{buffer} "{sys.executable}" -m asr {arguments} > /dev/full'
        run = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
        assert run.returncode == 1
        assert run.stderr.startswith("asr: error: ")
        assert "No space left on device" in run.stderr
        assert run.stderr.count("\n") == 1


def test_a_closed_pipe_is_silent(tiny_model: Path) -> None:
    command = f'"{sys.executable}" -m asr info --model "{tiny_model}" | true'
    run = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert run.stderr == ""


def test_no_traceback_reaches_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr", "info", "--model", str(tmp_path / "absent")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("asr: error: ")
    assert run.stderr.count("\n") == 1


def test_a_score_of_hotwords_needs_hotwords():
    assert "--hotwords FILE" in error_of(asr("transcribe", "a.wav", "--hotword-score", 2))


def test_a_recipe_that_cannot_be_trained_leaves_no_folder(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'name = "x"\n[data]\ntrain = ["gone"]\nvalid = ["gone"]\n'
    )
    out = tmp_path / "out"
    failed = asr("train", tmp_path / "recipe.toml", "--data", tmp_path, "--out", out)
    assert "gone.jsonl.gz: no such manifest" in error_of(failed)
    assert not out.exists()
