"""Searches in processes of their own, as many at a time as there are threads for torch.

The first process starts at once: while it loads the words, this one imports torch and reads the
network. Later, flashlight holds Python's lock while it searches: in one process searches run one
at a time, and the network waits for them. So the others follow once there is enough to do. They
talk through pipes, and end with the one that started them, however that ends, and with its forks.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import IO, Any

from asr.config import DecodeConfig
from asr.errors import AsrError, DataError
from asr.memory import merge_freed_blocks
from asr.tokenizer import Tokenizer
from asr.word_graph import WordGraph, find_language_model, load_word_graph
from asr.word_search import Alternatives, Columns, WordSearch

_WORTH_STARTING = 2.0  # seconds spent on searching: about what a process needs to be ready
_MOST_PROCESSES = 8  # each holds the words, in 0.2 GB
_RESTARTS = 3  # of each: what ends a process again and again, say a lack of memory, will go on
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
    config: DecodeConfig
    columns: Columns
    here: Callable[[DecodeConfig, Columns], Alternatives]  # does it in this process
    found: Future[Alternatives]


class SearchProcesses:
    """Searches with one vocabulary, in other processes if there may be more than one.

    Args:
        vocabulary: what is searched for.
        count: how many processes there may be; with fewer than two, all searches stay in this one.
    """

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        path = vocabulary.language_model.absolute()
        self.vocabulary = replace(
            vocabulary, language_model=path, hotwords=dict(vocabulary.hotwords)
        )
        self._owner = os.getpid()  # a fork of this process has neither threads nor processes
        self._loading = threading.Lock()
        self._graph: WordGraph | None = None
        self._search: WordSearch | None = None
        self._crew: _Crew | None = None
        if count > 1:
            self._crew = _Crew(self.vocabulary, count)
            # When this object is no longer in use, the crew goes. When Python ends it is left
            # waiting: a thread that woke up would be killed wherever it is.
            weakref.finalize(self, self._crew.dismiss).atexit = False

    def check(self) -> None:
        """Wait until the words are loaded.

        Raises:
            DataError: the lexicon or the language model is missing or wrong.
        """
        crew = self._crew if self._owner == os.getpid() else None
        error = crew.first.exception() if crew else None
        if isinstance(error, AsrError):
            raise DataError(str(error)) from None
        if not crew or error:
            self._load()

    def limit(self, count: int) -> None:
        """Have no more processes than `count`, but for those that have started."""
        if self._crew:
            self._crew.wanted = min(count, self._crew.wanted)

    def map(self, config: DecodeConfig, utterances: Iterable[Columns]) -> list[Alternatives]:
        """What is found in each utterance, by the weights of `config`."""
        found: list[Future[Alternatives]] = []
        crew = self._crew
        if self._owner != os.getpid() or (crew and crew.first.exception()):
            crew = None
        try:
            for columns in utterances:
                found.append(Future())
                if crew:
                    crew.tasks.put(_Task(config, columns, self._search_here, found[-1]))
                else:
                    found[-1].set_result(self._search_here(config, columns))
            return [future.result() for future in found]
        except BaseException:
            for future in found:
                future.cancel()
            raise

    def _search_here(self, config: DecodeConfig, columns: Columns) -> Alternatives:
        return self._searcher(config)(columns)

    def _searcher(self, config: DecodeConfig) -> WordSearch:
        graph = self._load()
        with self._loading:
            if self._search is None or self._search.config != config:
                self._search = WordSearch(config, graph)
            return self._search

    def _load(self) -> WordGraph:
        with self._loading:
            if self._graph is None:
                self._graph = self.vocabulary.load()
            return self._graph


def processes_for(
    tokenizer: Tokenizer,
    directory: Path,
    language_model: Path | None = None,
    hotwords: Mapping[str, float] = MappingProxyType({}),
) -> SearchProcesses:
    """Searches by a model directory's language model or another one, see `asr.decode`.

    Raises:
        DataError: there is no language model.
    """
    path = language_model or find_language_model(directory)
    return SearchProcesses(Vocabulary(tokenizer, path, hotwords), _threads())


def _threads() -> int:
    """As many as torch has; where it is not imported yet, as many as it will have at most."""
    if torch := sys.modules.get("torch"):
        threads: int = torch.get_num_threads()
        return threads
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else len(os.sched_getaffinity(0))


class _Crew:
    """The processes, and a thread for each that keeps it busy."""

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self.tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.first: Future[None] = Future()  # a process is ready, or why none will be
        self._vocabulary = vocabulary
        self._version = _version(vocabulary.language_model)
        self.wanted = min(count, _MOST_PROCESSES)  # processes, once there is enough to do
        self._hired = 0
        self._seconds = 0.0  # spent on searching
        self._counting = threading.Lock()
        self._hire(1)

    def dismiss(self) -> None:
        """Each thread gets a task that ends it, also one that is about to start."""
        for _ in range(_MOST_PROCESSES):
            self.tasks.put(None)

    def _hire(self, count: int) -> None:
        for _ in range(count):
            try:
                threading.Thread(target=self._work, name="asr-feed", daemon=True).start()
            except RuntimeError as error:  # there can be no more threads
                if not self._hired:
                    raise
                _log.warning("no further process for the search: %s", error)
                self.wanted = self._hired
                return
            self._hired += 1

    def _work(self) -> None:
        """Keep one process busy, and another if it fails."""
        process, restarts = self._start(), _RESTARTS
        while process and self._serve(process):
            if process.failed and restarts:
                process, restarts = self._start() or process, restarts - 1
        if process:
            process.end()

    def _start(self) -> "_Process | None":
        """A process that is ready; None: there can be none, for a reason that was said."""
        try:
            vocabulary = pickle.dumps(self._vocabulary, pickle.HIGHEST_PROTOCOL)
            if self._version != _version(self._vocabulary.language_model):
                raise RuntimeError(f"{self._vocabulary.language_model} has changed")
            process = _Process(vocabulary)
        except Exception as error:
            if not isinstance(error, AsrError) or self.first.done():
                _log.warning("no further process for the search: %s", error)
            if not self.first.done():
                self.first.set_exception(error)
            return None
        if not self.first.done():
            self.first.set_result(None)
        return process

    def _serve(self, process: "_Process") -> bool:
        """Have a task done. Of what it holds nothing lives on while the next one is awaited."""
        if (task := self.tasks.get()) is None:
            return False
        if task.found.set_running_or_notify_cancel():
            start = time.perf_counter()
            try:
                task.found.set_result(process.search(task))
            except Exception as error:
                task.found.set_exception(error)
            self._count(time.perf_counter() - start)
        return True

    def _count(self, seconds: float) -> None:
        with self._counting:
            self._seconds += seconds
            if self._seconds > _WORTH_STARTING:
                self._hire(self.wanted - self._hired)


def _version(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return None


class _Process:
    """Another process, which searches; once it has failed, this one does its work."""

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

    @property
    def failed(self) -> bool:
        """Whether it has ended."""
        return self._answers.closed

    def search(self, task: _Task) -> Alternatives:
        """What is found in the task's utterance."""
        if not self.failed:
            try:
                question = (task.config, task.columns)
                found: Alternatives = self._ask(pickle.dumps(question, pickle.HIGHEST_PROTOCOL))
            except Exception as error:  # whatever it is, question and answer are out of step
                _log.warning("a process of the search failed, this one does its work: %s", error)
                self.end()
            else:
                return found
        return task.here(task.config, task.columns)

    def end(self) -> None:
        """End it, whatever it does."""
        self._answers.close()
        self._process.kill()
        self._process.communicate()  # closes its input, and waits

    def _ask(self, question: bytes) -> Any:
        assert self._process.stdin
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
            return pickle.load(self._answers)  # of a process that runs this very file
        except (BrokenPipeError, EOFError):
            raise RuntimeError(f"it ended with status {self._process.wait()}") from None


def serve(answer: int) -> None:
    """The other process: load the words, then search as long as somebody asks.

    Args:
        answer: descriptor of the pipe that takes the answers.
    """
    merge_freed_blocks()
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
