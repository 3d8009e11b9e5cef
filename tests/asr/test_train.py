import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tones import RECIPE, say, tones_recipe

import asr.checkpoint
import asr.train
from asr.checkpoint import EpochScore
from asr.config import parse_config
from asr.data import Entry
from asr.errors import AsrError, ConfigError, DataError, ModelError
from asr.files import reserved
from asr.loading import load_model
from asr.select import Corpus
from asr.train import Trainer, train
from asr.train_log import TrainingLog


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_learns_a_tiny_corpus_to_zero_error_and_transcribes_it(data, tmp_path):
    directory = train(tones_recipe(), data, tmp_path, device="cpu")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "error_rate" in record]
    assert min(record["error_rate"] for record in epochs) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    recording = tmp_path / "new.wav"
    soundfile.write(recording, say("CAB BA"), 16000)
    assert load_model(directory).transcribe(recording).text == "CAB BA"


def test_what_cannot_be_aligned_is_listed_by_name(data, tmp_path):
    train(tones_recipe(epochs=1), data, tmp_path, device="cpu", max_steps=1)
    rows = (tmp_path / "excluded.tsv").read_text().splitlines()
    assert len(rows) == 2
    assert "long" in rows[1]
    assert "are fewer than the 180 needed" in rows[1]


@pytest.mark.parametrize("augment", [{"frequency_warp": 0.2}, {"frequency_masks": 2}])
def test_what_is_done_to_features_reaches_the_network(data, tmp_path, augment):
    none = {"frequency_masks": 0, "time_masks": 0}

    def weights_after_two_steps(name: str, augment: dict[str, object]) -> dict[str, torch.Tensor]:
        recipe = parse_config(RECIPE | {"augment": augment}, "test")
        train(recipe, data, tmp_path / name, device="cpu", max_steps=2)
        return load_file(tmp_path / name / "checkpoint.safetensors")

    plain = weights_after_two_steps("plain", none)
    changed = weights_after_two_steps("changed", none | augment)
    assert not torch.equal(plain["model.output.weight"], changed["model.output.weight"])


def test_resuming_between_any_steps_changes_nothing(data, tmp_path):
    random = {"level": 6.0, "noise_probability": 0.5, "frequency_warp": 0.2}
    recipe = tones_recipe(epochs=3, consistency=0.2, mmi=0.9)
    recipe = recipe.model_copy(
        update={
            "augment": recipe.augment.model_copy(update=random),
            "features": recipe.features.model_copy(update={"dither": 1e-4}),
        }
    )
    whole = Trainer(recipe, data, tmp_path / "whole")
    whole.run()
    for steps in (1, 4, 2, None):
        part = Trainer(recipe, data, tmp_path / "parts")
        part.run(steps)
        part.run(steps)  # by the same one, after it has written a model
    assert part.state.step == whole.state.step
    expected = _weights(tmp_path / "whole")
    assert all(torch.equal(v, expected[k]) for k, v in _weights(tmp_path / "parts").items())
    moments = load_file(tmp_path / "whole" / "checkpoint.safetensors")
    resumed = load_file(tmp_path / "parts" / "checkpoint.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in moments.items())
    assert _steps(tmp_path / "whole") == _steps(tmp_path / "parts")


def _steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").open()]


def test_records_of_steps_that_are_taken_again_come_once(data, tmp_path, monkeypatch):
    """Killed between checkpoints, and in the very epoch that a checkpoint ended."""
    monkeypatch.setattr(asr.train, "_LOG_STEPS", 1)
    recipe = tones_recipe(epochs=3)
    Trainer(recipe, data, tmp_path / "whole").run()
    trainer = Trainer(recipe, data, tmp_path / "killed")
    trainer.run(len(trainer._plan()))  # an epoch
    time.sleep(1)  # TensorBoard reads its files in the order of the seconds in their names
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", lambda self: None)
        trainer = Trainer(recipe, data, tmp_path / "killed")
        trainer.run(len(trainer._plan()))
    time.sleep(1)
    Trainer(recipe, data, tmp_path / "killed").run()
    steps = _steps(tmp_path / "whole")
    assert _steps(tmp_path / "killed") == steps
    events = EventAccumulator(str(tmp_path / "killed" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(dict.fromkeys(steps))


@pytest.mark.slow
def test_kill_9_then_resume_ends_with_the_same_bits(data, tmp_path):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tones import tones_recipe
        from asr.train import train
        train(tones_recipe(epochs=6), Path(sys.argv[1]), Path(sys.argv[2]), device="cpu")
    """)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(data), str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    kills = 0
    for _ in range(20):
        process = start("killed")
        checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None:
            time.sleep(0.01)
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before and kills < 3:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        if process.returncode == 0:
            break
    assert kills == 3
    expected = _weights(tmp_path / "whole")
    assert all(torch.equal(v, expected[k]) for k, v in _weights(tmp_path / "killed").items())


def test_a_gradient_that_is_not_finite_is_skipped(data, tmp_path, monkeypatch, capsys):
    trainer = Trainer(tones_recipe(epochs=2), data, tmp_path)
    loss = trainer.update.loss
    bad = iter([False, True, True])
    monkeypatch.setattr(
        trainer.update, "loss", lambda *a: loss(*a) * (float("nan") if next(bad, False) else 1.0)
    )
    trainer.run()
    assert trainer.state.skipped == 2
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert "gradient is not finite" in capsys.readouterr().err


@pytest.mark.parametrize("flat_start_steps", [0, 1])
def test_both_losses_train_alike(data, tmp_path, flat_start_steps):
    def two_steps(loss: str) -> Trainer:
        recipe = tones_recipe(loss=loss, flat_start_steps=flat_start_steps)
        trainer = Trainer(recipe, data, tmp_path / loss)
        trainer.run(2)
        return trainer

    plain, fused = two_steps("ctc"), two_steps("linear_ctc")
    assert fused.state.epoch_units == plain.state.epoch_units
    assert fused.state.epoch_loss == pytest.approx(plain.state.epoch_loss, rel=1e-5)
    expected = plain.model.state_dict()
    for name, value in fused.model.state_dict().items():
        # The steps themselves are of 2e-3 and 4e-3.
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_losses_and_their_gradients_are_alike(data, tmp_path, precision):
    recipe = tones_recipe(precision=precision)
    batch = Trainer(recipe, data, tmp_path).loader.load([Entry(0, 1.0), Entry(5, 1.0)])

    def results(loss: str) -> tuple[torch.Tensor, ...]:
        trainer = Trainer(tones_recipe(precision=precision, loss=loss), data, tmp_path / loss)
        trainer.model.eval()
        features, frames = trainer.filter_bank(batch.waveforms, batch.lengths)
        generator = torch.Generator().manual_seed(0)
        value = trainer.update.loss(features, frames, batch, 0, generator)
        assert value.dtype == torch.float32
        return value.detach(), *torch.autograd.grad(value, list(trainer.model.parameters()))

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for value, expected in zip(results("linear_ctc"), results("ctc"), strict=True):
        error = (value - expected).norm() / expected.norm()
        assert error <= 32 * torch.finfo(dtype).eps


def test_a_large_vocabulary_never_meets_a_batch_whole(data, tmp_path, monkeypatch):
    trainer = Trainer(tones_recipe(loss="linear_ctc"), data, tmp_path)
    monkeypatch.setattr(trainer.model.output, "forward", lambda hidden: pytest.fail("all logits"))
    trainer._step(trainer.loader.load([Entry(0, 1.0)]), 1e-3)
    assert trainer.state.epoch_loss > 0


def test_a_loss_that_is_not_finite_is_skipped(data, tmp_path, capsys):
    trainer = Trainer(tones_recipe(), data, tmp_path)
    batch = trainer.loader.load([Entry(0, 1.0)])
    endless = torch.ones(1000, dtype=torch.int64)  # more than there are frames: inf, gradient 0
    trainer._step(replace(batch, targets=endless, target_lengths=torch.tensor([1000])), 1e-3)
    assert trainer.state.skipped == 1
    assert trainer.state.epoch_loss == 0
    assert "loss or gradient is not finite" in capsys.readouterr().err


def test_an_interrupt_saves_first(data, tmp_path, monkeypatch):
    recipe = tones_recipe(epochs=2, checkpoint_steps=1000)
    trainer = Trainer(recipe, data, tmp_path)
    step = trainer._step

    def interrupted(*arguments: object) -> None:
        if trainer.state.step == 2:
            signal.raise_signal(signal.SIGINT)  # in the midst of a step
        step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = Trainer(recipe, data, tmp_path)
    assert again.state.step == 3  # that step was ended
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_fault_in_validation_costs_no_step(data, tmp_path, monkeypatch):
    recipe = tones_recipe(epochs=1, checkpoint_steps=1000)

    def fail(*_: object) -> None:
        raise DataError("a recording is gone")

    with monkeypatch.context() as patch:
        patch.setattr("asr.train.validate", fail)
        with pytest.raises(DataError, match="gone"):
            Trainer(recipe, data, tmp_path / "a").run()
    resumed = Trainer(recipe, data, tmp_path / "a")
    assert resumed.state.step > 0
    steps = resumed.state.step
    resumed.run()
    assert resumed.state.step == steps
    Trainer(recipe, data, tmp_path / "b").run()
    whole, again = _weights(tmp_path / "b"), _weights(tmp_path / "a")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_an_interrupt_while_an_epoch_is_scored_counts_it_once(data, tmp_path, monkeypatch):
    trainer = Trainer(tones_recipe(epochs=3), data, tmp_path)
    plot = trainer.log.plot

    def interrupted(history: list[EpochScore]) -> None:
        signal.raise_signal(signal.SIGINT)
        plot(history)

    monkeypatch.setattr(trainer.log, "plot", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    state = Trainer(tones_recipe(epochs=3), data, tmp_path).state
    assert (state.epoch, len(state.history)) == (1, 1)


def test_an_epoch_that_is_scored_again_is_recorded_once(data, tmp_path, monkeypatch):
    """Killed between its record and its checkpoint, after one that its last step made."""
    recipe = tones_recipe(epochs=2, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "plot", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Trainer(recipe, data, tmp_path).run()
    Trainer(recipe, data, tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [record["epoch"] for record in records if "epoch" in record] == [0, 1]


def test_a_second_interrupt_stops_at_once(data, tmp_path, monkeypatch):
    trainer = Trainer(tones_recipe(epochs=2, checkpoint_steps=1000), data, tmp_path)

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer, "_step", interrupted)
    before = signal.getsignal(signal.SIGINT)  # ignored in a shell's background
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert not trainer.checkpoint.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_checkpoint_of_another_network_is_named(data, tmp_path):
    """The recipe may be the same: the code that makes a network of it changes, too."""
    train(tones_recipe(epochs=1), data, tmp_path, device="cpu", max_steps=1)
    path = tmp_path / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["model.renamed"] = tensors.pop("model.output.bias")
    save_file(tensors, path, metadata)
    with pytest.raises(ModelError, match=r"another network.*; train into a new folder") as error:
        train(tones_recipe(epochs=1), data, tmp_path, device="cpu")
    assert "\n" not in str(error.value)


def test_another_recipe_does_not_resume(data, tmp_path):
    train(tones_recipe(epochs=1), data, tmp_path, device="cpu", max_steps=1)
    for key, value in {"model": {"num_layers": 9}, "units": {"kind": "subword"}}.items():
        (setting,) = value
        with pytest.raises(ModelError, match=f"another recipe, with other {key}.{setting};"):
            train(parse_config(RECIPE | {key: RECIPE[key] | value}, ""), data, tmp_path)
    with pytest.raises(ModelError, match=r"with other train\.seed, train\.learning_rate;"):
        train(tones_recipe(epochs=1, learning_rate=1e-9, seed=9), data, tmp_path, device="cpu")


def test_other_data_is_noticed(data, tmp_path, monkeypatch, capsys):
    for checksum, noticed in (1, False), (1, False), (2, True):
        monkeypatch.setattr(Corpus, "checksum", checksum)
        train(tones_recipe(), data, tmp_path, device="cpu", max_steps=1)
        assert ("training data is not what it was" in capsys.readouterr().err) == noticed


def test_a_full_disk_is_one_line(data, tmp_path, monkeypatch):
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"a part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(asr.checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"checkpoint\.safetensors: .* No space left on device"):
        train(tones_recipe(epochs=1), data, tmp_path, device="cpu")
    assert not list(tmp_path.glob(".*"))


def test_one_training_at_a_time_in_a_folder(data, tmp_path):
    """Two would write each other's checkpoints, and delete each other's epochs."""
    recipe = tones_recipe(epochs=1)
    with reserved(tmp_path / "out"), pytest.raises(AsrError, match=r"another.*; wait for its end"):
        train(recipe, data, tmp_path / "out", device="cpu", max_steps=1)
    assert train(recipe, data, tmp_path / "out", device="cpu", max_steps=1).is_dir()


def test_a_training_can_be_made_longer(data, tmp_path):
    train(tones_recipe(epochs=1), data, tmp_path, device="cpu")
    trainer = Trainer(tones_recipe(epochs=2), data, tmp_path)
    assert trainer.state.epoch == 1
    trainer.run()
    assert [score.epoch for score in trainer.state.history] == [0, 1]


def test_stops_when_nothing_gets_better(data, tmp_path):
    trainer = Trainer(tones_recipe(epochs=30, learning_rate=1e-9, patience=2), data, tmp_path)
    trainer.run()
    assert len(trainer.state.history) == 3


def test_no_data(tmp_path):
    with pytest.raises(DataError, match="asr prepare"):
        train(tones_recipe(), tmp_path, tmp_path / "out", device="cpu")
    with pytest.raises((DataError, ConfigError), match="train and valid"):
        train(parse_config({"name": "x"}, "here"), tmp_path, tmp_path / "out", device="cpu")
