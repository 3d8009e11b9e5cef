import io
import math
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from asr.config import DecodeConfig
from asr.decode import build_decoder
from asr.errors import ModelError
from asr.lexicon import Lexicon
from asr.rescoring import (
    RESCORER_FILES,
    SubwordModel,
    has_rescorer,
    load_rescorer,
    save_rescorer,
)
from asr.tokenizer import PhonemeTokenizer
from asr.tune import fit_second_pass
from asr.word_search import Alternatives, Hypothesis

torch.set_num_threads(1)

BEGIN, END, UNITS = 1, 2, 7
TEXTS = ["THE SEA", "A SEA", "THE CAT SEES THE SEA"]
ARPA = r"""\data\
ngram 1=6
ngram 2=1

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-3.0	<unk>
-1.0	SEA	-0.3
-0.9	SEE	-0.3
-1.0	THE	-0.3

\2-grams:
-0.5	<s> THE

\end\
"""


def _pieces(**marks: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
        **marks,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has read TEXTS until it knew them."""
    path = tmp_path_factory.mktemp("model")
    proto = _pieces()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    torch.manual_seed(0)
    model = SubwordModel(pieces.vocab_size(), 8, 16)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        texts = pieces.encode(TEXTS)
        model.surprise(texts, pieces.bos_id(), pieces.eos_id()).sum().backward()
        optimizer.step()
    save_rescorer(path, model, proto)
    (path / "lm.arpa").write_text(ARPA)
    return path


def _said(words: str, score: float, lm_score: float = 0.0) -> Hypothesis:
    return Hypothesis(tuple(words.split()), (), (), score, (), lm_score)


@given(st.lists(st.lists(st.integers(3, UNITS - 1), max_size=5), max_size=6))
def test_shared_beginnings_change_nothing(texts: list[list[int]]) -> None:
    torch.manual_seed(0)
    model = SubwordModel(UNITS, 4, 5)
    alone = [-model.surprise([text], BEGIN, END).sum().item() for text in texts]
    assert model.log_probs(texts, BEGIN, END) == pytest.approx(alone, rel=1e-5)
    if texts:
        padded = -model.surprise(texts, BEGIN, END).sum(0)
        assert padded.tolist() == pytest.approx(alone, rel=1e-5)


def test_probabilities_sum_to_one() -> None:
    """Every text of units that ends, and every one that goes on after two."""
    torch.manual_seed(0)
    model = SubwordModel(UNITS, 4, 5)
    units = [unit for unit in range(UNITS) if unit != END]
    ended = [[], *([first] for first in units)]
    open_ = [[first, second] for first in units for second in units]
    total = sum(map(math.exp, model.log_probs(ended, BEGIN, END)))
    for text in open_:  # p(text) without its end
        total += math.exp(-model.surprise([text], BEGIN, END)[:-1].sum().item())
    assert total == pytest.approx(1.0, rel=1e-5)


def test_what_the_model_knows_comes_first(folder: Path) -> None:
    rescorer = load_rescorer(folder)
    found: list[Alternatives] = [
        (_said("THE SEE", -1.0, -2.0), _said("THE SEA", -1.1, -3.0)),
        (_said("", 0.0),),
    ]
    config = DecodeConfig(
        lm_weight=2.0, rescore_weight=0.5, rescore_ngram=0.25, rescore_word_score=0.3
    )
    (best, second), alone = rescorer(found, config)
    assert best.words == ("THE", "SEA")
    assert second.words == ("THE", "SEE")
    ((_, log_prob), (nothing,)) = rescorer.log_probs(found)
    expected = -1.1 - 0.75 * 2.0 * -3.0 + 0.5 * log_prob + 0.3 * 2
    assert best.score == pytest.approx(expected)
    assert alone[0].score == pytest.approx(0.5 * nothing)
    kept = DecodeConfig(rescore_weight=0.0)
    assert rescorer(found, kept) == found


def test_the_decoder_asks_it_unless_another_language_model_is_given(folder: Path) -> None:
    tokenizer = PhonemeTokenizer(
        Lexicon([("THE", ("DH", "AH")), ("SEA", ("S", "IY")), ("SEE", ("S", "IY"))])
    )
    path = [tokenizer.units.index(unit) for unit in ("DH", "AH", "S", "IY")]
    probs = torch.full((1, 4, len(tokenizer.units)), 0.01)
    probs[0, range(4), path] = 0.9
    config = DecodeConfig(method="beam", lm_weight=1.0, rescore_weight=0.5)

    def words(config: DecodeConfig, **options: Any) -> tuple[str, ...]:
        decoder = build_decoder(config, tokenizer, folder, **options)
        return decoder(probs.log(), torch.tensor([4]))[0].words

    assert words(config.model_copy(update={"rescore_weight": 0.0})) == ("THE", "SEE")
    assert words(config) == ("THE", "SEA")
    assert words(config, language_model=folder / "lm.arpa") == ("THE", "SEE")
    assert words(config, hotwords={"SEE": 15.0}) == ("THE", "SEE")


def test_weights_of_the_second_pass_are_fitted() -> None:
    found: list[Alternatives] = [
        (_said("A SEE", 0.0), _said("A SEA", -1.0)),
        (_said("A TEA", 0.0), _said("A TOE", -2.0)),
    ]
    log_probs = [[-9.0, -4.0], [-4.0, -5.0]]
    decode, score = fit_second_pass(DecodeConfig(), found, log_probs, ["A SEA", "A TEA"])
    assert score.errors == 0
    assert score.reference_length == 4
    assert decode.rescore_weight == 0.3  # the least of a tenth that lifts -1 - 4 w above -9 w
    assert (decode.rescore_ngram, decode.rescore_word_score) == (1.0, 0.0)
    useless, score = fit_second_pass(DecodeConfig(), found, log_probs, ["A SEE", "A TEA"])
    assert score.errors == 0
    assert useless.rescore_weight == 0.0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: (path / RESCORER_FILES[0]).unlink(), "cannot read its second language"),
        (lambda path: (path / RESCORER_FILES[0]).write_bytes(b"x"), "cannot read its second"),
        (lambda path: (path / RESCORER_FILES[1]).write_bytes(b"x"), "cannot read its second"),
        (lambda path: (path / RESCORER_FILES[1]).unlink(), "cannot read its second language"),
        (
            lambda path: (path / RESCORER_FILES[1]).write_bytes(_pieces(eos_id=-1)),
            "pieces with marks",
        ),
        (
            lambda path: torch.save({}, path / RESCORER_FILES[0]),
            "cannot read its second language",
        ),
    ],
)
def test_what_is_wrong_with_its_files(tmp_path: Path, spoil: Any, says: str) -> None:
    save_rescorer(tmp_path, SubwordModel(20, 4, 5), _pieces())
    assert has_rescorer(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=says):
        load_rescorer(tmp_path)


def test_other_weights_are_no_language_model(tmp_path: Path) -> None:
    save_rescorer(tmp_path, SubwordModel(20, 4, 5), _pieces())
    save_file({"embedding.weight": torch.zeros(20, 4)}, tmp_path / RESCORER_FILES[0])
    with pytest.raises(ModelError, match="expected the weights of an LSTM"):
        load_rescorer(tmp_path)
