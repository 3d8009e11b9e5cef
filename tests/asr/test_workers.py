import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from asr.model_dir import Packaged
from asr.workers import Workers

LONG = 100  # samples


@dataclass
class Heard:
    """A network that gives back what it hears, long sounds when it may."""

    device: str = "cpu"
    threads: set[str] = field(default_factory=set)
    may_end: threading.Event = field(default_factory=threading.Event)

    def emissions(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        self.threads.add(threading.current_thread().name.rpartition("_")[0])
        assert waveforms.shape[1] < LONG or self.may_end.wait(10)
        if waveforms.isnan().any():
            raise ValueError("the network failed")
        return waveforms, lengths


@pytest.fixture
def network() -> Heard:
    return Heard()


def sums(batch: list[Tensor], log_probs: Tensor, lengths: Tensor) -> list[float]:
    if any(len(waveform) == 13 for waveform in batch):
        raise ValueError("the search failed")
    assert torch.is_inference_mode_enabled()
    return [float(row[:length].sum()) for row, length in zip(log_probs, lengths, strict=True)]


def run(network: Heard, batches: Any) -> Iterator[tuple[list[Tensor], list[float]]]:
    workers = Workers.of_this_process()
    return workers.run(cast(Packaged, network), batches, lambda waveform: waveform, sums)


def of_size(*sizes: int) -> list[Tensor]:
    return [torch.ones(size) for size in sizes]


def test_each_batch_comes_with_what_was_found_in_order(network: Heard) -> None:
    batches = [of_size(5, 2), of_size(3), of_size(1, 1, 4)] * 5
    results = list(run(network, batches))
    assert [found for _, found in results] == [[5, 2], [3], [1, 1, 4]] * 5
    assert all(batch is given for (batch, _), given in zip(results, batches, strict=True))
    assert network.threads == {"asr-network"}


def test_a_gpu_is_asked_in_the_threads_of_its_caller(network: Heard) -> None:
    network.device = "cuda"
    assert len(list(run(network, [of_size(2)]))) == 1
    assert network.threads == {threading.current_thread().name.rpartition("_")[0]}


@pytest.mark.parametrize("stage", ["network", "search"])
def test_what_fails_says_so_in_its_turn(network: Heard, stage: str) -> None:
    bad = of_size(13) if stage == "search" else [torch.tensor([float("nan")])]
    results = run(network, [of_size(2), bad, of_size(3)])
    assert next(results)[1] == [2]
    with pytest.raises(ValueError, match=f"the {stage} failed"):
        next(results)
    assert [found for _, found in run(network, [of_size(4)])] == [[4]]  # others are served on


def test_who_stops_asking_leaves_nothing_behind(network: Heard) -> None:
    asked: list[int] = []

    def batches() -> Iterator[list[Tensor]]:
        for size in [1, *range(LONG, 2 * LONG)]:
            asked.append(size)
            yield of_size(size)

    results = cast(Any, run(network, batches()))
    assert next(results)[1] == [1]
    threading.Timer(0.2, network.may_end.set).start()
    results.close()  # waits for what is in the network
    assert network.may_end.is_set()
    assert len(asked) < 20  # as many as there is room for, not all
    assert [found for _, found in run(network, [of_size(4)])] == [[4]]


def test_who_is_forgotten_may_end_in_a_thread_of_ours(network: Heard) -> None:
    """Garbage is collected wherever memory is asked for: in the search of the very batch, too."""
    ended = threading.Event()

    def search(batch: list[Tensor], *_: Tensor) -> int:
        if len(batch[0]) == 2:
            assert may_end.wait(10)
            results.close()
            ended.set()
        return len(batch[0])

    may_end, workers = threading.Event(), Workers.of_this_process()
    batches = [of_size(size) for size in (1, 2, 3)]
    results = workers.run(cast(Packaged, network), batches, lambda waveform: waveform, search)
    assert next(results)[1] == 1
    may_end.set()
    assert ended.wait(10)
    assert [found for _, found in run(network, [of_size(4)])] == [[4]]
