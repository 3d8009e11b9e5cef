"""n-gram models of words in ARPA format: read, loaded into KenLM, some words made likelier."""

import gzip
import io
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
        with _opener(path)(path, "rt", encoding="utf-8") as lines:
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


def load_kenlm(
    path: Path,
    words: tuple[str, ...],
    bonuses: Mapping[str, float] = MappingProxyType({}),
) -> KenLM:
    """The ARPA model at `path`; its words are numbered as in `words`.

    Args:
        path: gzipped or not.
        words: label -> word.
        bonuses: what is added to the log10-probability of a word, see `boosted`. That takes a
            second for 1.5 million n-grams, and the search is as fast as without.

    Raises:
        DataError: the file is not ARPA.
    """
    try:
        with _with_bonuses(path, bonuses) as file, _silent_stderr():
            return KenLM(str(file), Dictionary(list(words)))
    except (RuntimeError, EOFError, zlib.error, ValueError) as error:
        # KenLM names its own source file and function first.
        reason = " ".join(str(error).rpartition(" threw ")[2].split())
        raise DataError(f"{path}: expected an ARPA model, cannot read it: {reason}") from None


@contextmanager
def _with_bonuses(path: Path, bonuses: Mapping[str, float]) -> Iterator[Path]:
    if not bonuses:
        yield path
        return
    unigrams = read_unigrams(path)
    with _opener(path)(path, "rb") as file:
        arpa = file.read()
    with tempfile.NamedTemporaryFile(suffix=".arpa") as copy:
        copy.writelines(boosted(arpa, unigrams, bonuses))
        copy.flush()
        yield Path(copy.name)


def boosted(
    arpa: bytes, unigrams: Mapping[str, float], bonuses: Mapping[str, float]
) -> Iterator[bytes]:
    """Lines of an ARPA model in which some words are likelier, or less likely, after any others.

    An n-gram model finds a word's probability in one n-gram that ends with it, times what backing
    off costs: so each of these has the bonus. KenLM knows no log-probability above 0.

    Args:
        arpa: the model.
        unigrams: its words with their log10-probabilities; those that it lacks are added, as
            likely as the rarest of these.
        bonuses: word -> what is added to its log10-probability, as far as that stays negative.
    """
    scores = {word.encode(): bonus for word, bonus in bonuses.items()}
    rarest = min(unigrams.values())
    new = [word for word in bonuses if word not in unigrams]
    order = 0  # of the n-grams that are being read
    for line in io.BytesIO(arpa):
        fields = line.split()
        if order and len(fields) > order and fields[order] in scores:
            score = min(0.0, float(fields[0]) + scores[fields[order]])
            backoff = fields[order + 1 :]
            yield b"\t".join([b"%.6g" % score, b" ".join(fields[1 : order + 1]), *backoff]) + b"\n"
        elif line.startswith(b"ngram 1="):
            yield b"ngram 1=%d\n" % (int(fields[1].partition(b"=")[2]) + len(new))
        else:
            if line.startswith(b"\\"):  # \data\, \1-grams:, ..., \end\
                order = int(line[1:].partition(b"-")[0]) if b"-" in line else 0
            yield line
            if order == 1 and line.startswith(b"\\"):
                for word in new:
                    yield b"%.6g\t%s\n" % (min(0.0, rarest + bonuses[word]), word.encode())


def _opener(path: Path) -> Callable[..., Any]:
    return gzip.open if path.suffix == ".gz" else open


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
