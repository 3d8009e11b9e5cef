"""ARPA models, read and loaded."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def test_unigrams_are_read(model: Path) -> None:
    assert read_unigrams(model) == {"SEA": -0.8, "SEE": -1.5, "TOE": -2.0}


def test_damage_past_the_unigrams_is_found(model: Path) -> None:
    model.write_text(ARPA.replace("-0.7\tSEA SEE", "O.7\tSEA SEE"))
    with pytest.raises(DataError, match=r"lm\.arpa: expected an ARPA model, cannot read it"):
        load_kenlm(model, ("SEE",))


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
