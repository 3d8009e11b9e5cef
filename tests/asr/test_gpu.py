"""The packaged model on a card; every recipe's two steps there are in tests/test_recipes.py."""

from pathlib import Path

import pytest

from asr import load_model
from asr.config import Precision

pytestmark = pytest.mark.gpu
SAMPLE = Path(__file__).parents[2] / "docs" / "sample.flac"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reads_the_sample(precision: Precision) -> None:
    expected = SAMPLE.with_suffix(".txt").read_text(encoding="utf-8").strip()
    recognizer = load_model(device="cuda", precision=precision)
    assert recognizer.transcribe(SAMPLE).text == expected
