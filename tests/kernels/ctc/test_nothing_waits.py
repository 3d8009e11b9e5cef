"""With tensors on a GPU the host never waits for a value: shown without a GPU, by tensors without.

Fake tensors have a shape and a device, but no values: whatever would read one raises.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kernels.ctc.align import ctc_align
from kernels.ctc.beam import ctc_beam_search
from kernels.ctc.checks import labels_of
from kernels.ctc.hotwords import Hotwords
from kernels.ctc.lexicon import WordNGram
from kernels.ctc.ngram import NGram
from kernels.ctc.reducing import Reducing, Reduction

UNITS = ["-", "a", "b"]
ARPA = (
    "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-1\t<s>\t-0.5\n-1\t</s>\n-1\ta\t-0.5\n-1\tb\n\n"
    "\\2-grams:\n-0.3\ta b\n\n\\end\\\n"
)


@pytest.fixture
def model(tmp_path: Path) -> NGram:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return NGram.from_arpa(path, UNITS)


@pytest.fixture
def words(model: NGram) -> WordNGram:
    return WordNGram.build(model, [(1, [1, 2]), (2, [2])], 3)


@pytest.fixture
def hotwords() -> Hotwords:
    return Hotwords([[1, 2]], 3, 1.0)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def _batch() -> tuple[Tensor, Tensor]:
    return torch.empty(6, 2, 3, device="cuda"), torch.empty(2, dtype=torch.int64, device="cuda")


def test_reading_a_value_would_raise(fake: FakeTensorMode) -> None:
    with pytest.raises(DataDependentOutputException):
        _batch()[1].tolist()


@pytest.mark.parametrize("shape", [(2, 4), (5,)], ids=["padded", "packed"])
def test_alignment(shape: tuple[int, ...], fake: FakeTensorMode) -> None:
    log_probs, lengths = _batch()
    targets = torch.empty(shape, dtype=torch.int64, device="cuda")
    result = ctc_align(log_probs, targets, lengths, lengths, backend="torch")
    assert result.path.shape == (2, 6)
    assert all(tensor.device.type == "cuda" for tensor in result)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(2, 4), (5,)], ids=["padded", "packed"])
def test_checks_and_reductions_of_a_loss(
    shape: tuple[int, ...], reduction: Reduction, fake: FakeTensorMode
) -> None:
    scores, lengths = _batch()
    targets = torch.empty(shape, dtype=torch.int64, device="cuda")
    labels = labels_of("op", scores, 3, targets, lengths, lengths, 0, asynchronous=True)
    way = Reducing.of(reduction, True, labels.lengths)
    losses = torch.empty(2, device="cuda")
    weights = way.weights(way.reduce(losses), losses)
    assert weights.shape == losses.shape
    assert {*(x.device.type for x in (*labels[:3], weights))} == {"cuda"}


@pytest.mark.parametrize("scored", ["plain", "units", "words"])
def test_search(
    scored: str, model: NGram, words: WordNGram, hotwords: Hotwords, fake: FakeTensorMode
) -> None:
    log_probs, lengths = _batch()
    options: dict[str, Any] = {
        "plain": {},
        "units": {"lm": model, "hotwords": hotwords},
        "words": {"lm": words},
    }[scored]
    options = {name: scorer.to("cuda") for name, scorer in options.items()}
    result = ctc_beam_search(log_probs, lengths, 4, nbest=2, backend="torch", **options)
    assert result.tokens.shape == (2, 2, 6)
    assert all(tensor.device.type == "cuda" for tensor in result)
