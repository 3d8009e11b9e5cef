"""ARPA models: read, loaded, and with some words likelier than they were."""

import gzip
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from flashlight.lib.text.decoder.kenlm import KenLM

import asr.arpa
from asr.arpa import load_kenlm, read_unigrams
from asr.errors import DataError

ARPA = """\\data\\
ngram 1=6
ngram 2=3
ngram 3=2

\\1-grams:
-99\t<s>\t-0.5
-1.0\t</s>
-3.0\t<unk>
-0.8\tSEA\t-0.3
-1.5\tSEE\t-0.2
-2.0\tTOE

\\2-grams:
-2.0\t<s> TOE
-0.7\tSEA SEE\t-0.1
-0.4\tSEE SEE\t-0.6

\\3-grams:
-0.2\tSEA SEE SEE
-1.1\tSEE SEE SEE

\\end\\
"""
WORDS = ("SEA", "SEE", "TOE", "TEA")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def _scores(model: KenLM, *said: str) -> list[float]:
    """log10-probability of each word, and of the end."""
    state, scores = model.start(False), []
    for word in said:
        state, score = model.score(state, WORDS.index(word))
        scores.append(score)
    return [*scores, model.finish(state)[1]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_bonus_is_added_after_any_words(model: Path, packed: bool) -> None:
    if packed:
        model = model.with_name("lm.arpa.gz")
        model.write_bytes(gzip.compress(ARPA.encode()))
    bonuses = {"SEE": 0.15, "TOE": -1.0}
    plain, changed = load_kenlm(model, WORDS), load_kenlm(model, WORDS, bonuses)
    for said in product(WORDS[:3], repeat=4):
        expected = [bonuses.get(word, 0.0) for word in (*said, "</s>")]
        both = zip(_scores(plain, *said), _scores(changed, *said), strict=True)
        assert [after - before for before, after in both] == pytest.approx(expected, abs=1e-5)


def test_no_word_is_likelier_than_certain(model: Path) -> None:
    changed = load_kenlm(model, WORDS, {"SEE": 50.0})
    assert _scores(changed, "SEA", "SEE", "SEE")[1:3] == [0.0, 0.0]
    assert _scores(changed, "TOE", "SEE")[1] == 0.0  # backing off from TOE costs nothing


def test_a_word_that_is_added_is_as_likely_as_the_rarest(model: Path) -> None:
    assert _scores(load_kenlm(model, WORDS), "TEA")[0] == pytest.approx(-3.5)  # <unk>, after <s>
    changed = load_kenlm(model, WORDS, {"TEA": 0.5})
    assert _scores(changed, "TEA")[0] == pytest.approx(-0.5 - 2.0 + 0.5)
    assert _scores(changed, "SEA", "SEE") == _scores(load_kenlm(model, WORDS), "SEA", "SEE")


def test_unigrams_are_read(model: Path) -> None:
    assert read_unigrams(model) == {"SEA": -0.8, "SEE": -1.5, "TOE": -2.0}


def test_damage_past_the_unigrams_is_found(model: Path) -> None:
    model.write_text(ARPA.replace("-0.7\tSEA SEE", "O.7\tSEA SEE"))
    for bonuses in ({}, {"SEE": 1.0}):
        with pytest.raises(DataError, match=r"lm\.arpa: expected an ARPA model, cannot read it"):
            load_kenlm(model, WORDS, bonuses)
    packed = model.with_name("lm.arpa.gz")
    lines = ARPA + "-0.1\tnoise\n" * 20_000
    packed.write_bytes(gzip.compress(lines.encode())[:-100])
    with pytest.raises(DataError, match=r"lm\.arpa\.gz: expected an ARPA model, cannot read it"):
        load_kenlm(packed, WORDS, {"SEE": 1.0})


def test_nothing_is_left_behind(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model.with_name("temporary")
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    load_kenlm(model, WORDS, {"SEE": 1.0})
    assert not list(folder.iterdir())


def test_two_threads_that_load_models_leave_standard_error_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What KenLM prints is caught by redirecting the process's standard error for a moment."""
    seconds = [0.2, 0.05]  # that loading takes, the first model's last
    monkeypatch.setattr(asr.arpa, "KenLM", lambda *_: time.sleep(seconds.pop()))
    before, kept = os.fstat(2), os.dup(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: load_kenlm(Path("lm.arpa"), ("SEE",)), range(2)))
    after = os.fstat(2)
    os.dup2(kept, 2)
    os.close(kept)
    assert os.path.samestat(before, after)


def test_a_closed_standard_error_is_no_hindrance(model: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from asr.arpa import load_kenlm\n"
        "load_kenlm(Path(sys.argv[1]), ('SEE',))\n"
        "print('loaded')"
    )
    command = [sys.executable, "-c", script, str(model)]
    run = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE)
    assert run.stdout == b"loaded\n"
