import gzip
import io
from pathlib import Path

import package_model
import pytest
import sentencepiece
import torch

from asr.config import Config, FeatureConfig, ModelConfig
from asr.errors import ModelError
from asr.lexicon import Lexicon
from asr.model import AcousticModel
from asr.model_dir import load_model_dir, save_model_dir
from asr.rescoring import RESCORER_FILES, SubwordModel, has_rescorer, save_rescorer
from asr.tokenizer import PhonemeTokenizer

ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-2 <unk>\n-0.5 TEA\n\n\\end\\\n"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    config = Config(
        name="tiny",
        features=FeatureConfig(num_mel_bins=8),
        model=ModelConfig(conv_channels=2, num_layers=1, hidden_size=4),
    )
    tokenizer = PhonemeTokenizer(Lexicon([("TEA", ("T", "IY"))]))
    torch.manual_seed(0)
    network = AcousticModel(config, len(tokenizer.units))
    save_model_dir(tmp_path / "model", config, network, tokenizer, "# trained\n")
    (tmp_path / "lexicon.txt").write_text("SEE\tS IY\nTEA\tT IY\n")
    with gzip.open(tmp_path / "small.arpa.gz", "wt") as file:
        file.write(ARPA)
    return tmp_path


def _package(parts: Path, name: str = "packaged") -> Path:
    out = parts / name
    package_model.package(
        parts / "model", parts / "lexicon.txt", parts / "small.arpa.gz", "# card\n", out
    )
    return out


def test_the_parts_come_together(parts: Path) -> None:
    packaged = load_model_dir(_package(parts))
    assert packaged.config.decode.method == "beam"
    assert isinstance(packaged.tokenizer, PhonemeTokenizer)
    assert "SEE" in packaged.tokenizer.lexicon
    assert (packaged.directory / "README.md").read_text() == "# card\n"
    assert (packaged.directory / "lm.arpa.gz").is_file()


def test_a_rescorer_comes_along(parts: Path) -> None:
    assert not has_rescorer(_package(parts))
    files = (parts / "model", parts / "lexicon.txt", parts / "small.arpa.gz")
    save_rescorer(parts / "rescorer", SubwordModel(8, 2, 3), b"no pieces")
    with pytest.raises(ModelError, match="second language model"):
        package_model.package(*files, "", parts / "packaged", parts / "rescorer")
    save_rescorer(parts / "rescorer", SubwordModel(8, 2, 3), _pieces())
    package_model.package(*files, "", parts / "packaged", parts / "rescorer")
    for name in RESCORER_FILES:
        assert (parts / "packaged" / name).read_bytes() == (parts / "rescorer" / name).read_bytes()


def _pieces() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["A TEA"] * 9), model_writer=model, vocab_size=8, minloglevel=2
    )
    return model.getvalue()


def test_a_language_model_must_be_packed(parts: Path) -> None:
    """It goes under a name that says so, under which nothing else can be read."""
    (parts / "small.arpa.gz").write_text(ARPA)
    with pytest.raises(package_model.DataError, match=r"small\.arpa\.gz: expected a gzipped"):
        _package(parts)
    assert not (parts / "packaged").exists()


def test_a_file_too_large_for_the_repository(parts: Path, monkeypatch) -> None:
    monkeypatch.setattr(package_model, "LARGEST", 10)
    with pytest.raises(package_model.DataError, match="more than 10"):
        _package(parts)


def test_what_was_there_stays_until_the_new_model_is_made(parts: Path, monkeypatch) -> None:
    stale = _package(parts) / "lm.arpa"
    stale.write_text(ARPA)
    with monkeypatch.context() as patch:
        patch.setattr(package_model, "LARGEST", 10)
        with pytest.raises(package_model.DataError):
            _package(parts)
    assert stale.exists()
    _package(parts)
    assert not stale.exists()
    assert [path.name for path in parts.iterdir() if "packaged" in path.name] == ["packaged"]


def test_a_folder_that_is_no_model_is_not_replaced(parts: Path) -> None:
    """It may be all that there is: `--out exp` would delete every training."""
    (parts / "exp").mkdir()
    (parts / "exp" / "config.toml").write_text("of a training")
    with pytest.raises(package_model.DataError, match="exp: expected a model directory"):
        _package(parts, "exp")
    assert (parts / "exp" / "config.toml").exists()
    assert load_model_dir(_package(parts, "new/folder"))
