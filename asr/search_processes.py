"""Searches in processes of their own, as many at a time as there are threads for torch.

flashlight holds Python's lock while it searches: in one process searches run one at a time, and the
network waits for them. The processes are started once there is enough to do, talk through pipes,
and end with the one that started them, however that ends.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from asr.errors import AsrError
from asr.tokenizer import Tokenizer
from asr.word_graph import WordGraph, load_word_graph
from asr.word_search import Alternatives, Columns, WordSearch

_WORTH_STARTING = 2.0  # seconds spent on searching here: about what a process needs to be ready
# Modules are looked for where this process finds them, whatever lies in the working directory.
_SERVE = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from asr.search_processes import serve; serve(int(sys.argv[1]))"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """The arguments of `load_word_graph`."""

    tokenizer: Tokenizer
    language_model: Path
    hotwords: Mapping[str, float] = field(default_factory=dict)

    def load(self) -> WordGraph:
        """The words and the model that scores them."""
        return load_word_graph(self.tokenizer, self.language_model, self.hotwords)


@dataclass(frozen=True)
class _Task:
    search: WordSearch  # this process's: says how to search
    columns: Columns
    found: Future[Alternatives]


_Tasks = SimpleQueue[_Task | None]


class SearchProcesses:
    """Searches with one vocabulary: in this process at first, in others when that is worth it.

    Args:
        vocabulary: what the processes load, the same as this one has just loaded.
        count: how many there may be; with fewer than two, all searches stay in this one.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        path = vocabulary.language_model.absolute()
        self._vocabulary = replace(
            vocabulary, language_model=path, hotwords=dict(vocabulary.hotwords)
        )
        self._version = _version(path)
        self._count = count
        self._tasks: _Tasks = SimpleQueue()
        self._starting = threading.Lock()
        self._started = count < 2  # nothing to start
        self._owner = os.getpid()  # a fork of this process has neither threads nor processes
        self._seconds = 0.0  # spent on searching here
        self.ready = threading.Event()  # one of the processes, at least, has been

    def map(self, search: WordSearch, utterances: Iterable[Columns]) -> list[Alternatives]:
        """What `search` finds in each utterance."""
        found: list[Future[Alternatives]] = []
        try:
            for columns in utterances:
                found.append(Future())
                if self._owner == os.getpid() and self.ready.is_set():
                    self._tasks.put(_Task(search, columns, found[-1]))
                else:
                    found[-1].set_result(self._here(search, columns))
            return [future.result() for future in found]
        except BaseException:
            for future in found:
                future.cancel()
            raise

    def _here(self, search: WordSearch, columns: Columns) -> Alternatives:
        start = time.perf_counter()
        found = search(columns)
        self._seconds += time.perf_counter() - start
        if self._seconds > _WORTH_STARTING and self._owner == os.getpid():
            self.start()
        return found

    def start(self) -> None:
        """Start the processes, if nobody has; they are used as soon as they are ready."""
        with self._starting:
            if self._started:
                return
            self._started = True
        try:
            vocabulary = pickle.dumps(self._vocabulary, pickle.HIGHEST_PROTOCOL)
            if self._version != _version(self._vocabulary.language_model):
                raise RuntimeError(f"{self._vocabulary.language_model} has changed")
        except Exception as error:
            _log.warning("no processes for the search: %s", error)
            return
        # When this object is no longer in use, each thread gets a task that ends it. When Python
        # ends they are left waiting: one that woke up would be killed wherever it is.
        weakref.finalize(self, _put_ends, self._tasks, self._count).atexit = False
        for _ in range(self._count):
            feed = (vocabulary, self._tasks, self.ready)
            threading.Thread(target=_feed, args=feed, name="asr-feed", daemon=True).start()


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _put_ends(tasks: _Tasks, count: int) -> None:
    for _ in range(count):
        tasks.put(None)


def _feed(vocabulary: bytes, tasks: _Tasks, ready: threading.Event) -> None:
    """Keep one process busy."""
    try:
        process = _Process(vocabulary)
    except Exception as error:
        _log.warning("no further process for the search: %s", error)
        return
    ready.set()
    while task := tasks.get():
        if task.found.set_running_or_notify_cancel():
            try:
                task.found.set_result(process.search(task))
            except Exception as error:
                task.found.set_exception(error)
    process.end()


class _Process:
    """Another process, which searches; once it fails, this one does its work."""

    def __init__(self, vocabulary: bytes) -> None:
        answers, answer = os.pipe()  # its standard output is anybody's
        self._answers = os.fdopen(answers, "rb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(answer), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[answer],
                start_new_session=True,  # Ctrl-C is for this process, which then ends that one
            )
        except BaseException:
            self._answers.close()
            raise
        finally:
            os.close(answer)
        try:
            if reason := self._ask(vocabulary):
                raise AsrError(reason)
        except BaseException:
            self.end()
            raise

    def search(self, task: _Task) -> Alternatives:
        """What is found in the task's utterance."""
        if not self._answers.closed:
            try:
                question = (task.search.config, task.columns)
                found: Alternatives = self._ask(pickle.dumps(question, pickle.HIGHEST_PROTOCOL))
            except Exception as error:  # whatever it is, question and answer are out of step
                _log.warning("a process of the search failed, this one does its work: %s", error)
                self.end()
            else:
                return found
        return task.search(task.columns)

    def end(self) -> None:
        """End it, whatever it does."""
        self._answers.close()
        self._process.kill()
        self._process.communicate()  # closes its input, and waits

    def _ask(self, question: bytes) -> Any:
        assert self._process.stdin
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return pickle.load(self._answers)  # of a process that runs this very file


def serve(answer: int) -> None:
    """The other process: load the words, then search as long as somebody asks.

    Args:
        answer: descriptor of the pipe that takes the answers.
    """
    questions = sys.stdin.buffer
    with suppress(OSError, EOFError, pickle.UnpicklingError), os.fdopen(answer, "wb") as answers:
        try:
            graph = pickle.load(questions).load()
        except AsrError as error:
            _send(answers, str(error))
            return
        _send(answers, None)
        search: WordSearch | None = None
        while True:  # until the process that asks has ended
            config, columns = pickle.load(questions)
            if search is None or search.config != config:
                search = WordSearch(config, graph)
            _send(answers, search(columns))


def _send(stream: IO[bytes], message: object) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()
