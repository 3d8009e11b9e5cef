from pathlib import Path

import pytest

from asr.config import Config, dump_config, load_config, parse_config
from asr.errors import ConfigError


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_what_is_dumped_loads_equal(tmp_path):
    config = parse_config(
        {"name": "x", "train": {"epochs": 3}, "augment": {"speeds": [0.9, 1.0]}}, "here"
    )
    assert load_config(_write(tmp_path, dump_config(config))) == config


def test_unknown_key_names_the_nearest(tmp_path):
    path = _write(tmp_path, 'name = "x"\n[train]\nlearning_rat = 1.0\n')
    with pytest.raises(ConfigError, match=r"'train.learning_rat'; did you mean 'learning_rate'"):
        load_config(path)


def test_unknown_table_names_the_valid_ones(tmp_path):
    with pytest.raises(ConfigError, match="features"):
        load_config(_write(tmp_path, 'name = "x"\n[zzzzz]\na = 1\n'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\n[train]\nepochs = 0\n', "train.epochs: .*greater than 0, got 0"),
        ('name = "x"\n[units]\nkind = "word"\n', "units.kind: .*'phoneme'"),
        ('name = "x"\n[decode]\nlm_weight = nan\n', "decode.lm_weight: .*finite number, got nan"),
        ('name = "x"\n[model]\ncmn_prior = nan\n', "model.cmn_prior: .*greater than .*, got nan"),
        (
            'name = "x"\n[features]\nframe_shift = 0.01\n',
            "features: expected frame_shift from 0.0625 ms, one sample, .*: got 0.01 and 25$",
        ),
        ('name = "x"\n[augment]\nspeeds = []\n', "augment.speeds: .*at least 1 item"),
        ('name = "x"\n[augment]\nspeeds = [0.0]\n', "augment.speeds.0: .*equal to 0.1, got 0.0"),
        (
            'name = "x"\n[features]\nlow_freq = 9000\n',
            "features: expected low_freq < high_freq <= 8000 Hz, .*: got 9000 and 7600$",
        ),
        (
            'name = "x"\n[model]\nrecurrent = "gru"\npeephole = true\n',
            'model: expected recurrent = "lstm" or "cifg" with peephole: got "gru"$',
        ),
        (
            'name = "x"\n[data]\nmin_seconds = 9\nmax_seconds = 8\n',
            "data: expected min_seconds <= max_seconds: got 9 and 8$",
        ),
        (
            'name = "x"\n[augment]\nnoise_snr = [30, 5]\n',
            "augment: expected noise_snr from low to high: got 30 and 5$",
        ),
        ("[train]\n", "name: Field required"),
        ("name = \n", "not valid TOML"),
    ],
)
def test_bad_values_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(_write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml")


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config(name="x").name = "y"  # type: ignore[misc]
