"""Trainings that begin with another model's weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tones import RECIPE, tones_recipe

from asr.config import Config, parse_config
from asr.errors import ModelError
from asr.train import Trainer, train


def test_starting_from_a_model_of_other_units(data, tmp_path):
    first = train(tones_recipe(epochs=1), data, tmp_path / "a", device="cpu")
    recipe = tones_recipe(epochs=1)
    other = "character" if recipe.units.kind != "character" else "phoneme"
    recipe = recipe.model_copy(update={"units": recipe.units.model_copy(update={"kind": other})})
    trainer = Trainer(recipe, data, tmp_path / "b", init=first)
    theirs = load_file(first / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        if name.startswith("output."):
            assert len(value) == len(trainer.tokenizer.units) != len(theirs[name])
        else:
            assert torch.equal(value, theirs[name].float())
    trainer.run(1)
    shutil.rmtree(first)  # a training that is resumed needs it no more
    assert Trainer(recipe, data, tmp_path / "b", init=first).run()


def test_starting_from_a_model(data, tmp_path):
    first = train(tones_recipe(epochs=1), data, tmp_path / "a", device="cpu")
    trainer = Trainer(tones_recipe(epochs=2), data, tmp_path / "b", init=first)
    expected = load_file(first / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name].float())


def test_the_lexicon_of_a_recipe_is_its_own(data, tmp_path):
    """The units are the same phones, so that the output layer stays."""
    lexicon = tmp_path / "lexicon.txt"
    phones = {"AB": "AE B", "BA": "B AA", "CAB": "K AE B", "ACB": "EY K B", "BC": "B K"}
    words = phones | {"CC": "K K", "A": "AH", "B": "B", "C": "K", "ABBA": "AE B AH", "AABB": "B B"}
    lexicon.write_text("".join(f"{word} {said}\n" for word, said in words.items()))
    settings = RECIPE | {"units": {"kind": "phoneme"}}
    first = train(parse_config(settings, "test"), data, tmp_path / "a", device="cpu", max_steps=1)
    own = RECIPE | {"units": {"kind": "phoneme", "lexicon": str(lexicon)}}
    trainer = Trainer(parse_config(own, "test"), data, tmp_path / "b", init=first)
    said = trainer.tokenizer.encode("ACB")
    assert [trainer.tokenizer.units[unit] for unit in said] == ["EY", "K", "B"]
    weights = load_file(first / "model.safetensors")
    assert torch.equal(trainer.model.output.weight, weights["output.weight"].float())


def test_transcripts_that_give_fewer_subwords_are_told(data, tmp_path, capsys):
    recipe = parse_config(RECIPE | {"units": {"kind": "subword", "vocab_size": 999}}, "test")
    train(recipe, data, tmp_path, device="cpu", max_steps=1)
    assert "units, fewer than vocab_size = 999" in capsys.readouterr().err


def test_subwords_of_another_number_are_no_start(data, tmp_path):
    def recipe(size: int) -> Config:
        units = {"kind": "subword", "vocab_size": size}
        return parse_config(RECIPE | {"units": units}, "test")

    first = train(recipe(45), data, tmp_path / "a", device="cpu", max_steps=1)
    with pytest.raises(ModelError, match=r"\[units\] has vocab_size = 45 \(expected: 46\); take"):
        train(recipe(46), data, tmp_path / "b", init=first)


@pytest.mark.parametrize(
    ("table", "key", "value", "theirs"),
    [("features", "low_freq", 100.0, 20.0), ("model", "hidden_size", 16, 24)],
)
def test_a_model_with_other_settings_is_no_start(data, tmp_path, table, key, value, theirs):
    """With other features its weights would fit, and mean something else."""
    train(tones_recipe(epochs=1), data, tmp_path / "one", device="cpu", max_steps=1)
    init = tmp_path / "one" / "model"
    other = parse_config(RECIPE | {table: {**RECIPE.get(table, {}), key: value}}, "test")
    reason = rf"its \[{table}\] has {key} = {theirs} \(expected: {value}\); take"
    with pytest.raises(ModelError, match=reason):
        train(other, data, tmp_path / "two", init=init)
    assert not (tmp_path / "two" / "tokenizer").exists()
    noisy = parse_config(RECIPE | {"features": {"dither": 1e-4}}, "test")  # of training only
    assert train(noisy, data, tmp_path / "three", device="cpu", init=init, max_steps=1).is_dir()
