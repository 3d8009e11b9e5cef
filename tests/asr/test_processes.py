"""Trainings of two processes, started as a user starts them, on recordings of noise."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from asr.config import load_config
from asr.errors import ConfigError
from asr.model import AcousticModel
from asr.model_dir import save_model_dir
from asr.prepare import prepare_tsv
from asr.processes import Processes, joined
from asr.tokenizer import CharacterTokenizer
from asr.train import Trainer

RECIPE = """
name = "noise"
[data]
train = ["noise_train"]
valid = ["noise_dev"]
[units]
kind = "character"
[model]
conv_channels = 2
num_layers = 1
hidden_size = 8
[train]
epochs = 2
max_utterances = 2
warmup_steps = 0
consistency = 0.1
checkpoint_steps = 2
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five batches to train on, three rounds of two, and two of validation, one for each."""
    source = tmp_path_factory.mktemp("noise")
    generator = np.random.default_rng(0)
    rows = ["path\tsplit\ttranscript"]
    for index in range(27):
        waveform = generator.normal(0, 0.1, 16000 + 1000 * (index % 7))
        soundfile.write(source / f"{index}.wav", waveform, 16000)
        rows.append(f"{index}.wav\t{'train' if index < 9 else 'dev'}\t{'AB' * (index % 3 + 1)}")
    (source / "utterances.tsv").write_text("\n".join(rows) + "\n")
    prepare_tsv(source, source, "noise")
    (source / "recipe.toml").write_text(RECIPE)
    (source / "taught.toml").write_text(RECIPE + "distill = 0.5\n")
    config, tokenizer = load_config(source / "recipe.toml"), CharacterTokenizer()
    network = AcousticModel(config, len(tokenizer.units))
    save_model_dir(source / "teacher", config, network, tokenizer, "")
    return source


@pytest.mark.parametrize(
    ("cores", "size", "here", "expected"),
    [(1, 1, None, 2), (16, 1, None, 15), (16, 4, "4", 3), (16, 8, "4", 3), (99, 1, None, 16)],
)
def test_loading_threads_share_the_cores(
    cores: int, size: int, here: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    if here:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert Processes(0, size).loading_threads("cuda") == expected
    assert Processes(0, size).loading_threads("cpu") == 2


TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def _start(
    corpus: Path, out: Path, *options: str, recipe: str = "recipe.toml"
) -> subprocess.Popen[str]:
    train = ("-m", "asr", "train", str(corpus / recipe), "--device", "cpu")
    folders = ("--data", str(corpus), "--out", str(out))
    return subprocess.Popen([*TWO, *train, *folders, *options], stderr=subprocess.PIPE, text=True)


def _run(corpus: Path, out: Path, *options: str, recipe: str = "recipe.toml") -> str:
    process = _start(corpus, out, *options, recipe=recipe)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def _assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("recipe", ["recipe.toml", "taught.toml"])
def test_two_processes_train_one_model_and_resume_with_the_same_bits(corpus, tmp_path, recipe):
    taught = ["--teacher", str(corpus / "teacher")] if recipe == "taught.toml" else []
    said = _run(corpus, tmp_path / "whole", *taught, recipe=recipe)
    assert said.count("epoch 1: ") == 1  # by one of them
    records = [json.loads(row) for row in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "epoch" in record] == [3, 6]
    _run(corpus, tmp_path / "parts", *taught, "--max-steps", "1", recipe=recipe)
    said = _run(corpus, tmp_path / "parts", *taught, recipe=recipe)
    assert "are not those" not in said
    _assert_same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))


EACH = """
import torch
from asr.processes import joined

with joined("cpu") as (processes, device):
    rank = processes.rank
    assert (processes.size, processes.is_first, device) == (2, rank == 0, "cpu")
    tensors = [torch.full((2, 3), 1.0 + rank), torch.tensor([10.0 * rank])]
    processes.average(tensors, 1 + 2 * rank)  # the second counts three times
    assert (tensors[0] == (1 + 3 * 2) / 4).all() and tensors[1] == 30 / 4, tensors
    assert processes.total(rank, 0.5) == [1, 1.0]
    assert processes.chain(["a", "b"][: 1 + rank]) == ["a", "a", "b"]
    processes.share(tensors := [torch.full((2,), rank), torch.tensor(3.0 + rank)])
    assert tensors[0].tolist() == [0, 0] and tensors[1] == 3
"""


def test_what_processes_tell_each_other(tmp_path):
    (tmp_path / "each.py").write_text(EACH)
    run = subprocess.run(
        [*TWO, str(tmp_path / "each.py")], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


SAME = """
import sys
from pathlib import Path
import pytest
from asr.config import load_config
from asr.processes import joined
from asr.train import Trainer
from asr.validate import validate

corpus, out = map(Path, sys.argv[1:])
with joined("cpu") as (processes, device):
    recipe = load_config(corpus / "recipe.toml")
    trainer = Trainer(recipe, corpus, out, device, processes=processes)
    trainer.run(3)  # an epoch
    weights = [w for value in trainer.model.state_dict().values() for w in value.flatten().tolist()]
    assert processes.total(*weights) == [2 * w for w in weights]
    (score,) = trainer.state.history
    ours = trainer.model, trainer.filter_bank, trainer.tokenizer, trainer.valid_loader
    assert validate(*ours) == pytest.approx((score.valid_loss, score.error_rate))
    (u, total) = len(trainer.train_set.utterances), sum(map(len, trainer.train_set.targets))
    assert trainer.state.history[0].step == 3 and processes.total(u, total) == [2 * u, 2 * total]
"""


def test_all_have_the_weights_of_one_and_the_score_of_all(corpus, tmp_path):
    (tmp_path / "same.py").write_text(SAME)
    run = subprocess.run(
        [*TWO, str(tmp_path / "same.py"), str(corpus), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


class _Late(Processes):
    """Ctrl-C comes while the processes agree whether one has come."""

    def total(self, *values: float) -> list[float]:
        sums = super().total(*values)
        if len(values) == 1 and not any(values):
            signal.raise_signal(signal.SIGINT)
        return sums


class _Others(Processes):
    """Another process has had a Ctrl-C."""

    def total(self, *values: float) -> list[float]:
        return super().total(*values) if len(values) > 1 else [1.0]


def test_ctrl_c_is_never_lost(corpus, tmp_path):
    trainer = Trainer(load_config(corpus / "recipe.toml"), corpus, tmp_path, processes=_Late())
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.state.step == 2  # what came in the first step is seen after the second
    assert trainer.checkpoint.exists()


def test_ctrl_c_after_that_of_another_process_is_the_first_of_this(corpus, tmp_path, monkeypatch):
    trainer = Trainer(load_config(corpus / "recipe.toml"), corpus, tmp_path, processes=_Others())
    save = trainer._save

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        save()

    monkeypatch.setattr(trainer, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.checkpoint.exists()


def test_the_others_say_that_one_has_ended(corpus, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        RECIPE.replace('"noise_train"', '"noise_train", "broken"')
    )
    for manifest in corpus.glob("*.jsonl.gz"):
        (tmp_path / manifest.name).symlink_to(manifest)
    soundfile.write(tmp_path / "gone.wav", np.zeros(16000), 16000)
    (tmp_path / "utterances.tsv").write_text("path\tsplit\ttranscript\ngone.wav\ttrain\tA\n")
    prepare_tsv(tmp_path, tmp_path, "broken")
    (tmp_path / "broken_train.jsonl.gz").rename(tmp_path / "broken.jsonl.gz")
    (tmp_path / "gone.wav").unlink()
    process = _start(tmp_path, tmp_path / "out")
    with process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("asr: error: ")]
    assert any("gone.wav" in line for line in lines), errors
    assert "Connection closed" not in errors


def test_processes_on_gpus_have_one_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    for device, message in (("cuda", "at most 2 processes.*got 3"), ("cuda:1", "cpu or cuda of")):
        with pytest.raises(ConfigError, match=message), joined(device):
            pass


def test_ctrl_c_stops_all(corpus, tmp_path):
    process = _start(corpus, tmp_path, "--epochs", "10000")
    checkpoint = tmp_path / "checkpoint.safetensors"
    with process:
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "the same command resumes" in errors
    assert "RuntimeError" not in errors
    resumed = _run(corpus, tmp_path, "--epochs", "10000", "--max-steps", "1")
    assert "resuming at epoch" in resumed


@given(st.integers(1, 20), st.integers(1, 5))
def test_every_item_is_somebodys_and_all_have_as_many(items, size):
    shares = [Processes(rank, size).ours(range(items)) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-items // size)}
    assert {item for share in shares for item in share} == set(range(items))
