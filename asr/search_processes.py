"""Searches in processes of their own, as many at a time as there are cores.

flashlight holds Python's lock while it searches: in one process searches run one at a time, and the
network waits for them. The processes are started once there is enough to do, talk through their
standard input and output, and end with the one that started them, however that ends.
"""

import logging
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from asr.tokenizer import Tokenizer
from asr.word_graph import WordGraph, load_word_graph
from asr.word_search import Columns, Hypothesis, WordSearch

_WORTH_STARTING = 2.0  # seconds spent on searching here: about what a process needs to be ready
# Modules are looked for where this process finds them, whatever lies in the working directory.
_SERVE = "import sys; sys.path[:] = sys.argv[1:]; from asr.search_processes import serve; serve()"
_GONE = (OSError, EOFError, pickle.UnpicklingError)  # what talking to an ended process raises

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

    def __reduce__(self) -> tuple[type["Vocabulary"], tuple[object, ...]]:
        return Vocabulary, (self.tokenizer, self.language_model, dict(self.hotwords))


@dataclass(frozen=True)
class _Task:
    search: WordSearch  # this process's: says how to search
    columns: Columns
    found: Future[Hypothesis]


class SearchProcesses:
    """Searches with one vocabulary: in this process at first, in others when that is worth it.

    Args:
        vocabulary: what the processes load, the same as this one has.
        count: how many there may be; with fewer than two, all searches stay in this one.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self._vocabulary = vocabulary
        self._count = count if count > 1 else 0
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._started = False
        self._seconds = 0.0  # spent on searching here
        self.ready = threading.Event()  # one of the processes, at least

    def map(self, search: WordSearch, utterances: Iterable[Columns]) -> list[Hypothesis]:
        """What `search` finds in each utterance."""
        found: list[Future[Hypothesis]] = []
        for columns in utterances:
            task = _Task(search, columns, Future())
            found.append(task.found)
            if self.ready.is_set():
                self._tasks.put(task)
                continue
            start = time.perf_counter()
            _run(task, _search_here)
            self._seconds += time.perf_counter() - start
            if self._seconds > _WORTH_STARTING:
                self.start()
        return [future.result() for future in found]

    def start(self) -> None:
        """Start the processes, if nobody has; they are used as soon as they are ready."""
        with self._starting:
            if self._started:
                return
            self._started = True
        feed = (self._vocabulary, self._tasks, self.ready)
        for _ in range(self._count):
            threading.Thread(target=_feed, args=feed, name="asr-search", daemon=True).start()
        weakref.finalize(self, _stop, self._tasks, self._count)


def _stop(tasks: "SimpleQueue[_Task | None]", count: int) -> None:
    for _ in range(count):
        tasks.put(None)


def _run(task: _Task, search: Callable[[_Task], Hypothesis]) -> None:
    try:
        task.found.set_result(search(task))
    except _GONE:
        raise
    except Exception as error:
        task.found.set_exception(error)


def _search_here(task: _Task) -> Hypothesis:
    return task.search(task.columns)


def _feed(
    vocabulary: Vocabulary, tasks: "SimpleQueue[_Task | None]", ready: threading.Event
) -> None:
    """Keep one process busy; once it is gone, do its tasks here."""
    try:
        process = _Process(vocabulary)
    except _GONE as error:
        _log.warning("no further process for the search: %s", error)
        return
    ready.set()
    search: Callable[[_Task], Hypothesis] = process.search
    while task := tasks.get():
        try:
            _run(task, search)
        except _GONE:
            _log.warning("a process of the search has ended; this one does its work")
            search = _search_here
            _run(task, search)
    process.end()


class _Process:
    """Another process, which searches; where it is gone, its methods raise one of `_GONE`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        self._ask(vocabulary)

    def search(self, task: _Task) -> Hypothesis:
        """What the other process finds."""
        found: Hypothesis = self._ask((task.search.config, task.columns))
        return found

    def end(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, message: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        _send(self._process.stdin, message)
        return pickle.load(self._process.stdout)


def serve() -> None:
    """The other process: load the words, then search as long as somebody asks."""
    tasks, answers = sys.stdin.buffer, sys.stdout.buffer
    with suppress(*_GONE):  # the process that asks has ended
        graph = pickle.load(tasks).load()
        _send(answers, None)
        search: WordSearch | None = None
        while True:
            config, columns = pickle.load(tasks)
            if search is None or search.config != config:
                search = WordSearch(config, graph)
            _send(answers, search(columns))


def _send(stream: IO[bytes], message: object) -> None:
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()
