"""Searches in processes of their own find what one process finds, and survive the processes."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import asr.search_processes
from asr.config import DecodeConfig
from asr.decode import BeamDecoder
from asr.errors import DataError
from asr.search_processes import SearchProcesses, Vocabulary
from asr.tokenizer import CharacterTokenizer
from asr.word_search import Columns, Hypothesis, WordSearch

torch.set_num_threads(1)

ARPA = r"""\data\
ngram 1=6
ngram 2=1

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-3.0	<unk>
-0.8	AB	-0.3
-0.9	BAD
-1.1	A

\2-grams:
-0.3	AB </s>

\end\
"""
BEAM = DecodeConfig(method="beam", lm_weight=1.0)
WAIT = 60.0  # seconds after which something hangs


@pytest.fixture
def words(tmp_path: Path) -> Vocabulary:
    (tmp_path / "lm.arpa").write_text(ARPA)
    return Vocabulary(CharacterTokenizer(), tmp_path / "lm.arpa")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that a test has started."""
    processes = []

    def start(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    yield processes
    for process in processes:
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def babble() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten utterances of letters, some heard more clearly, of up to 12 frames; the last is empty.

    Of longer or vaguer ones many paths are equally likely, and which of them flashlight drops
    depends on their place in memory: the sum of the paths differs from one search to the next.
    """
    generator = torch.Generator().manual_seed(0)
    scores = 6 * torch.randn(10, 12, len(CharacterTokenizer().units), generator=generator)
    return scores.log_softmax(-1), torch.tensor([12, 1, 7, 11, 10, 3, 12, 9, 2, 0])


def recognised(decoder: BeamDecoder) -> list[Hypothesis]:
    return decoder(*babble())


def alone(words: Vocabulary, config: DecodeConfig) -> list[Hypothesis]:
    return recognised(BeamDecoder(config, SearchProcesses(words, 1)))


def forbid_searching_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(WordSearch, "__call__")


def test_words_that_no_transcript_can_have_are_passed_over(words: Vocabulary) -> None:
    """Of a language model from elsewhere."""
    words.language_model.write_text(ARPA.replace("BAD", "bad").replace("\tA\n", "\t<UNK>\n"))
    assert words.load().words == ("AB",)


def test_processes_find_what_this_one_finds(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = (BEAM, DecodeConfig(method="beam", word_score=4.0), BEAM)
    expected = [alone(words, config) for config in configs]
    assert any(found.words for found in expected[0])
    assert expected[0] != expected[1]
    processes = SearchProcesses(words, 2)
    forbid_searching_here(monkeypatch)
    for config, hypotheses in zip(configs, expected, strict=True):
        assert recognised(BeamDecoder(config, processes)) == hypotheses


def test_processes_know_the_hotwords(words: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    hotwords = MappingProxyType({"CAB": 9.0})
    words = Vocabulary(words.tokenizer, words.language_model, hotwords)
    expected = alone(words, BEAM)
    assert any("CAB" in found.words for found in expected)
    processes = SearchProcesses(words, 2)
    forbid_searching_here(monkeypatch)
    assert recognised(BeamDecoder(BEAM, processes)) == expected


def test_the_first_starts_at_once_the_others_when_it_is_worth_it(
    words: Vocabulary, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = SearchProcesses(words, 3)
    decoder = BeamDecoder(BEAM, processes)
    decoder(*babble())
    assert len(started) == 1
    monkeypatch.setattr(asr.search_processes, "_WORTH_STARTING", 0.0)
    decoder(*babble())
    until(lambda: len(started) == 3)
    decoder(*babble())
    assert len(started) == 3


def test_no_more_start_than_they_are_limited_to(
    words: Vocabulary, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.search_processes, "_WORTH_STARTING", 0.0)
    processes = SearchProcesses(words, 4)
    processes.limit(2)
    processes.limit(3)  # does not raise it again
    decoder = BeamDecoder(BEAM, processes)
    decoder(*babble())
    until(lambda: len(started) == 2)
    decoder(*babble())
    assert len(started) == 2
    processes.limit(1)
    assert recognised(decoder) == alone(words, BEAM)


def test_where_no_more_threads_can_start_the_first_goes_on(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = alone(words, BEAM)
    monkeypatch.setattr(asr.search_processes, "_WORTH_STARTING", 0.0)
    decoder = BeamDecoder(BEAM, SearchProcesses(words, 3))
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "asr-feed":
            raise RuntimeError("can't start new thread")
        start(thread)

    found = []
    searching = threading.Thread(
        target=lambda: found.extend([recognised(decoder), recognised(decoder)]), daemon=True
    )
    monkeypatch.setattr(threading.Thread, "start", refused)
    searching.start()
    searching.join(WAIT)
    assert found == [expected, expected]
    assert "no further process for the search: can't start new thread" in caplog.text


def test_one_core_has_no_use_for_them(words: Vocabulary, started: list) -> None:
    assert recognised(BeamDecoder(BEAM, SearchProcesses(words, 1)))
    assert not started


def test_there_are_as_many_as_torch_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asr.search_processes._threads() == 1
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert asr.search_processes._threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert asr.search_processes._threads() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_wrong_with_the_words_is_said_once_they_are_loaded(
    words: Vocabulary, count: int
) -> None:
    words.language_model.write_text("no model")
    processes = SearchProcesses(words, count)
    with pytest.raises(DataError, match=r"lm\.arpa: expected an ARPA model"):
        processes.check()
    words.language_model.unlink()
    processes = SearchProcesses(words, count)
    with pytest.raises(DataError, match=r"lm\.arpa: no such language model"):
        processes.check()
    os.mkfifo(words.language_model)
    processes = SearchProcesses(words, count)
    with pytest.raises(DataError, match=r"lm\.arpa: not a regular file"):
        processes.check()


def hire_all(processes: SearchProcesses, started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two processes, both with words."""
    monkeypatch.setattr(asr.search_processes, "_WORTH_STARTING", 0.0)
    until(lambda: bool(recognised(BeamDecoder(BEAM, processes))) and len(started) == 2)


def test_a_killed_process_loses_nothing(
    words: Vocabulary,
    started: list,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    processes = SearchProcesses(words, 2)
    hire_all(processes, started, monkeypatch)
    decoder = BeamDecoder(BEAM, processes)
    expected = alone(words, BEAM)
    for process in started[:2]:
        process.kill()
        assert recognised(decoder) == expected
    until(lambda: recognised(decoder) == expected and "this one does its work" in caplog.text)
    assert f"it ended with status {-signal.SIGKILL}" in caplog.text


def test_another_takes_the_place_of_one_that_ends(
    words: Vocabulary, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asr.search_processes, "_RESTARTS", 2)
    processes = SearchProcesses(words, 2)
    processes.limit(1)
    decoder = BeamDecoder(BEAM, processes)
    expected = recognised(decoder)
    for count in (2, 3):
        started[-1].kill()
        assert recognised(decoder) == expected
        until(lambda count=count: len(started) == count)
        with monkeypatch.context() as here:
            forbid_searching_here(here)
            assert recognised(decoder) == expected
    started[-1].kill()
    assert recognised(decoder) == expected == recognised(decoder)
    assert len(started) == 3


def test_an_error_of_a_search_is_raised(words: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = SearchProcesses(words, 2)
    processes.check()
    broken = BeamDecoder(BEAM, processes)
    monkeypatch.setattr(broken, "_config", "no config")  # fails there, and then here
    with pytest.raises(AttributeError):
        broken(*babble())


def test_the_processes_threads_free_no_memory_of_torch(words: Vocabulary) -> None:
    """Where one does while Python ends, Python aborts."""
    columns = BeamDecoder(BEAM, SearchProcesses(words, 1))._columns(babble()[0][0])
    assert columns.emissions.flags.owndata


def test_what_is_interrupted_does_not_wait(words: Vocabulary) -> None:
    idle = SimpleNamespace(first=Future(), tasks=SimpleQueue())  # nobody takes the tasks
    idle.first.set_result(None)
    processes = SearchProcesses(words, 1)
    processes._crew = cast(Any, idle)

    def columns() -> Iterator[Columns]:
        yield Columns(np.zeros((1, 3), np.float32), (0,))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.map(BEAM, columns())
    assert idle.tasks.get_nowait().found.cancelled()


def test_a_fork_searches_alone(words: Vocabulary) -> None:
    processes = SearchProcesses(words, 2)
    decoder = BeamDecoder(BEAM, processes)
    expected = recognised(decoder)
    child = os.fork()
    if not child:
        signal.alarm(int(WAIT))
        os._exit(recognised(decoder) != expected)
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_does_not_wait_for_words_that_others_load(words: Vocabulary) -> None:
    processes = SearchProcesses(words, 1)
    processes._crew = cast(Any, SimpleNamespace(first=Future()))  # which are not there yet
    child = os.fork()
    if not child:
        signal.alarm(int(WAIT))
        processes.check()
        os._exit(recognised(BeamDecoder(BEAM, processes)) != alone(words, BEAM))
    assert os.waitpid(child, 0)[1] == 0


def test_the_model_is_the_one_that_was_loaded(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch, started: list, caplog
) -> None:
    """Not another one of that name, in another working directory or written since."""
    folder = words.language_model.parent
    monkeypatch.chdir(folder)
    words = replace(words, language_model=Path("lm.arpa"))
    expected = alone(words, BEAM)
    processes = SearchProcesses(words, 2)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert recognised(BeamDecoder(BEAM, processes)) == expected
    (folder / "lm.arpa").write_text(ARPA.replace("-0.9", "-0.1").replace("-1.1", "-2.22"))
    monkeypatch.setattr(asr.search_processes, "_WORTH_STARTING", 0.0)
    assert recognised(BeamDecoder(BEAM, processes)) == expected
    until(lambda: "lm.arpa has changed" in caplog.text)
    assert len(started) == 1
    assert recognised(BeamDecoder(BEAM, processes)) == expected


def test_noise_on_standard_output_does_no_harm(
    words: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forbid_searching_here(monkeypatch)
    assert recognised(BeamDecoder(BEAM, SearchProcesses(words, 2)))


def test_without_processes_this_one_searches(
    words: Vocabulary, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "no-such-python")
    processes = SearchProcesses(words, 2)
    processes.check()
    assert "no further process" in caplog.text
    assert recognised(BeamDecoder(BEAM, processes)) == alone(words, BEAM)


def test_they_end_with_their_owner(
    words: Vocabulary, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = SearchProcesses(words, 2)
    hire_all(processes, started, monkeypatch)
    del processes
    gc.collect()
    assert all(process.wait(WAIT) is not None for process in started)


def test_they_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    # A module of this name in the working directory is none of theirs.
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong pickle')\n")
    script = """
        import subprocess, sys, time
        from pathlib import Path
        from asr.search_processes import SearchProcesses, Vocabulary
        from asr.tokenizer import CharacterTokenizer

        started = []
        popen = subprocess.Popen
        def start(*arguments, **options):
            started.append(popen(*arguments, **options))
            return started[-1]
        subprocess.Popen = start
        processes = SearchProcesses(Vocabulary(CharacterTokenizer(), Path("lm.arpa")), 2)
        processes.check()
        processes._crew._hire(1)
        while len(started) < 2:
            time.sleep(0.01)
        print(*[process.pid for process in started], flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        children = [int(word) for word in owner.stdout.readline().split()]
        assert len(children) == 2
        owner.send_signal(signal.SIGKILL)
    until(lambda: not any(_runs(child) for child in children))


def _runs(process: int) -> bool:
    """Whether it runs: not gone, not a zombie that nobody has asked about."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False
