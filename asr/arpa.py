"""n-gram models of words in ARPA format: their vocabulary, and the model as KenLM has it."""

import gzip
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from asr.errors import DataError

_NOT_WORDS = {"<s>", "</s>", "<unk>"}
_redirecting = threading.Lock()  # two threads at once would leave standard error redirected


def read_unigrams(path: Path) -> dict[str, float]:
    """Words of an ARPA model, gzipped or not, with their log10-probabilities.

    Raises:
        DataError: the file is missing or not ARPA.
    """
    unigrams: dict[str, float] = {}
    if path.exists() and not path.is_file():  # it is read twice
        raise DataError(f"{path}: not a regular file; write what comes from it to one")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("\\1-grams:"):
                    break
            for line in lines:
                if not line.strip() or line.startswith("\\"):
                    break
                score, word = line.split()[:2]
                if word not in _NOT_WORDS:
                    unigrams[word] = float(score)
    except FileNotFoundError:
        raise DataError(f"{path}: no such language model; give an ARPA file") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: expected an ARPA model, cannot read it: {error}") from None
    if not unigrams:
        raise DataError(f"{path}: expected an ARPA model, found no words under \\1-grams: in it")
    return unigrams


def load_kenlm(path: Path, words: tuple[str, ...]) -> KenLM:
    """The ARPA model at `path`; its words are numbered as in `words`.

    Raises:
        DataError: the file is not ARPA.
    """
    try:
        with _silent_stderr():
            return KenLM(str(path), Dictionary(list(words)))
    except RuntimeError as error:
        # KenLM names its own source file and function first.
        reason = " ".join(str(error).rpartition(" threw ")[2].split())
        raise DataError(f"{path}: expected an ARPA model, cannot read it: {reason}") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """KenLM draws a progress bar on the process's standard error, past `sys.stderr`."""
    with _redirecting, Path(os.devnull).open("wb") as nowhere:
        try:
            saved = os.dup(2)
        except OSError:  # closed: nobody reads it
            saved = os.dup(nowhere.fileno())
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
