"""Every recipe trains two steps, at its own size, on a tiny stand-in for its corpus."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asr.config import load_config
from asr.data import read_manifest
from asr.model_dir import load_model_dir
from asr.prepare import prepare_librispeech
from asr.train import train

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of the tiny LibriSpeech."""
    corpus = tmp_path_factory.mktemp("corpus") / "LibriSpeech"
    maker = ROOT / "scripts" / "make_tiny_librispeech.py"
    subprocess.run([sys.executable, maker, corpus, "--tones"], check=True, capture_output=True)
    out = tmp_path_factory.mktemp("manifests")
    prepare_librispeech(corpus, out)
    return out / "librispeech_train-clean-100.jsonl.gz"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_runs_two_steps(path, device, manifest, tmp_path, capsys):
    config = load_config(path)
    assert config.name == path.stem
    assert ("mmi" in path.stem) == bool(config.train.mmi)
    if device == "cuda":  # CTC's kernels are to run, too
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"flat_start_steps": 0})}
        )
    data = tmp_path / "data"
    data.mkdir()
    for name in {*config.data.train, *config.data.valid}:
        shutil.copy(manifest, data / f"{name}.jsonl.gz")
    directory = train(config, data, tmp_path / "out", device=device, max_steps=2)
    assert directory is not None
    assert "not finite" not in capsys.readouterr().err
    packaged = load_model_dir(directory)
    assert packaged.config == config
    assert packaged.tokenizer.units[0] == "<blk>"
    assert read_manifest(data / f"{config.data.train[0]}.jsonl.gz")


def test_every_number_has_its_reason():
    for path in RECIPES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\w+ = [0-9]", line):
                assert "#" in line, f"{path.name}: {line}"


def test_results_name_every_recipe():
    results = (ROOT / "recipes" / "RESULTS.md").read_text(encoding="utf-8")
    for path in RECIPES:
        assert path.name in results
