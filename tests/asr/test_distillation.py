"""Trainings that learn from trained models."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tones import RECIPE, tones_recipe

from asr.config import Config, parse_config
from asr.consistency import divergence
from asr.data import Batch
from asr.distillation import Teachers, load_teachers
from asr.errors import ConfigError, ModelError
from asr.loss import TrainingLoss
from asr.model import AcousticModel
from asr.model_dir import Packaged, load_model_dir, save_model_dir
from asr.tokenizer import CharacterTokenizer, build_tokenizer
from asr.train import train

FRAMES = torch.tensor([40, 29])


def _config(augment: dict[str, object] | None = None, **train: object) -> Config:
    nothing = {"frequency_masks": 0, "time_masks": 0}
    model = RECIPE["model"] | {"dropout": 0.0}  # type: ignore[operator]
    tables = {"model": model, "augment": nothing | (augment or {}), "train": train}
    return parse_config(RECIPE | tables, "test")


def _saved(directory: Path, config: Config, seed: int) -> Packaged:
    """A model of characters with random weights."""
    torch.manual_seed(seed)
    tokenizer = CharacterTokenizer()
    network = AcousticModel(config, len(tokenizer.units))
    save_model_dir(directory, config, network, tokenizer, "", dtype=torch.float32)
    return load_model_dir(directory)


def _features() -> torch.Tensor:
    return torch.randn(2, 40, 80, generator=torch.Generator().manual_seed(1))


def _loss(student: Packaged, config: Config, *models: Packaged) -> float:
    targets = [[1, 2, 3], [4]]
    lengths, none = torch.tensor([3, 1]), torch.empty(0)
    batch = Batch(("a", "b"), none, none, torch.tensor([1, 2, 3, 4]), lengths)
    teachers = Teachers(models, student.model, student.tokenizer.units) if models else None
    loss = TrainingLoss(student.model, config, targets, teachers)
    generator = torch.Generator().manual_seed(2)
    return float(loss(_features(), FRAMES, batch, 0, generator).detach())


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 1000))
def test_divergence_is_kullback_and_leiblers_and_padding_has_none(B, T, seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, B, T, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    expected = sum(
        float((q[b, t].exp() * (q[b, t] - p[b, t])).sum())
        for b in range(B)
        for t in range(int(lengths[b]))
    )
    assert float(divergence(p, q, lengths)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [({}, 1e-5), ({"consistency": 0.5}, 1e-5), ({"precision": "bf16"}, 1e-3)],
    ids=["fp32", "views", "bf16"],
)
def test_a_model_has_nothing_to_learn_from_itself(tmp_path, settings, bound):
    """In bf16, too: a teacher computes as its student does."""
    student = _saved(tmp_path, _config(), seed=0)
    plain = _loss(student, _config(**settings))
    taught = _loss(student, _config(distill=1, **settings), student)
    assert taught == pytest.approx(plain, abs=bound * 69)  # frames


@pytest.mark.parametrize("views", [{}, {"consistency": 0.5}])
def test_the_divergence_from_a_teacher_is_weighed_and_added(tmp_path, views):
    student = _saved(tmp_path / "a", _config(), seed=0)
    teacher = _saved(tmp_path / "b", _config(), seed=1)
    plain = _loss(student, _config(**views))
    one, two = (_loss(student, _config(distill=weight, **views), teacher) for weight in (1, 2))
    said, lengths = student.model(_features(), FRAMES)
    expected = float(divergence(said, teacher.model(_features(), FRAMES)[0], lengths).detach())
    assert expected > 1
    assert one - plain == pytest.approx(expected, rel=1e-4)
    assert two - plain == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize(
    "augment",
    [
        {"time_masks": 2, "time_mask_frames": 30, "time_mask_fraction": 1.0},
        {"frequency_warp": 0.3},
    ],
    ids=["masks", "warp"],
)
def test_a_teacher_hears_what_the_student_does_not(tmp_path, augment):
    student = _saved(tmp_path, _config(), seed=0)
    alone, taught = _config(augment), _config(augment, distill=1)
    assert _loss(student, taught, student) > _loss(student, alone) + 1e-3


def test_several_teachers_have_one_answer(tmp_path):
    models = [_saved(tmp_path / str(seed), _config(), seed) for seed in range(3)]
    student = models[0]
    teachers = Teachers(models[1:], student.model, student.tokenizer.units)
    answer = teachers(_features(), FRAMES)
    p, q = (model.model(_features(), FRAMES)[0].exp() for model in models[1:])
    expected = (p * q).sqrt()
    torch.testing.assert_close(answer.exp(), expected / expected.sum(-1, keepdim=True))
    assert not answer.requires_grad


def test_the_flat_start_asks_no_teacher(tmp_path, monkeypatch):
    student, teacher = (_saved(tmp_path / str(seed), _config(), seed) for seed in range(2))
    monkeypatch.setattr(Teachers, "__call__", lambda *_: pytest.fail("was asked"))
    flat = _config(distill=1, flat_start_steps=1)
    assert _loss(student, flat, teacher) == _loss(student, _config(flat_start_steps=1))


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (
            {"features": {"low_freq": 100.0}},
            r"\[features\] has low_freq = 100.0 \(expected: 20.0\)",
        ),
        (
            {"units": {"kind": "phoneme"}},
            r"\[units\] has kind = 'phoneme' \(expected: 'character'\)",
        ),
    ],
    ids=["features", "units"],
)
def test_a_model_of_another_kind_is_no_teacher(tmp_path, tables, reason):
    _saved(tmp_path / "b", _config(), seed=0)
    other = parse_config(RECIPE | tables, "test")
    tokenizer = build_tokenizer(other.units, [])
    save_model_dir(tmp_path / "b", other, AcousticModel(other, len(tokenizer.units)), tokenizer, "")
    with pytest.raises(ModelError, match=f"b: its {reason}; take that into the recipe, or another"):
        load_teachers([tmp_path / "b"], _config(distill=1), "cpu")


def test_a_teacher_has_the_units_and_the_frames_of_its_student(tmp_path):
    student = _saved(tmp_path / "a", _config(), seed=0)
    stacking = parse_config(RECIPE | {"model": {"subsampling": "stack"}}, "test")
    other = _saved(tmp_path / "b", stacking, seed=0)
    units = student.tokenizer.units
    with pytest.raises(ModelError, match=r"b: its output has a frame for every 3 .*expected: 4\);"):
        Teachers([student, other], student.model, units)
    with pytest.raises(ModelError, match=r"a: its units are other ones than the student's; all"):
        Teachers([student], student.model, units[::-1])


def test_a_weight_and_a_teacher_come_together(data, tmp_path):
    (tmp_path / "some").mkdir()
    with pytest.raises(
        ConfigError, match=r"train.distill = 0.5, --teacher given 0 times: expected"
    ):
        train(tones_recipe(distill=0.5), data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"train.distill = 0, --teacher given 1 times: expected"):
        train(tones_recipe(), data, tmp_path / "out", teachers=[tmp_path / "some"])
    with pytest.raises(ModelError, match="some"):
        train(tones_recipe(distill=1), data, tmp_path / "out", teachers=[tmp_path / "some"])


def test_a_taught_training_resumes_with_the_same_bits(data, tmp_path, capsys):
    teacher = train(tones_recipe(epochs=1), data, tmp_path / "teacher", device="cpu")
    recipe = tones_recipe(epochs=2, distill=0.5, consistency=0.2)
    learn = {"device": "cpu", "teachers": [teacher]}
    whole = train(recipe, data, tmp_path / "whole", **learn)
    plain = train(tones_recipe(epochs=2, consistency=0.2), data, tmp_path / "plain", device="cpu")
    for steps in (1, 3, None):
        parts = train(recipe, data, tmp_path / "parts", max_steps=steps, **learn)
    assert "are not those" not in capsys.readouterr().err
    assert "speech and what tones said of it." in (parts / "README.md").read_text()
    expected, alone = (load_file(each / "model.safetensors") for each in (whole, plain))
    weights = load_file(parts / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert not torch.equal(weights["output.weight"], alone["output.weight"])
    train(recipe, data, tmp_path / "parts", device="cpu", teachers=[teacher, plain])
    assert "the teachers are not those of the last checkpoint" in capsys.readouterr().err


def test_a_student_takes_its_teachers_subwords(data, tmp_path, monkeypatch):
    def recipe(size: int, **settings: object) -> Config:
        tables = {"units": {"kind": "subword", "vocab_size": size}}
        return parse_config(RECIPE | tables | {"train": RECIPE["train"] | settings}, "test")

    teacher = train(recipe(45), data, tmp_path / "teacher", device="cpu", max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("asr.train.build_tokenizer", lambda *_: pytest.fail("made its own"))
        train(recipe(45, distill=1), data, tmp_path / "a", max_steps=1, teachers=[teacher])
    with pytest.raises(ModelError, match=r"its \[units\] has vocab_size = 45 \(expected: 40\)"):
        train(recipe(40, distill=1), data, tmp_path / "b", max_steps=1, teachers=[teacher])
    assert not (tmp_path / "b" / "tokenizer").exists()
