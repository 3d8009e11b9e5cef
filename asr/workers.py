"""Batches of recordings through the network and the search, several of them beside each other.

On a CPU up to four batches are in the network at a time, each on its share of the cores: those on
one batch would wait for each other at every operator. On a GPU they go through it one by one.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from threading import Lock
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.model_dir import Packaged
from asr.threads import is_ours, pool_with_cores

_NETWORKS = 4  # batches that are in the network at most, each with 0.15 GB
_SEARCHERS = 2  # batches whose words are sought, so that no process waits for a batch's last
_AHEAD = 2  # batches that may wait for the search

Item = TypeVar("Item")  # of a batch: something with a waveform
Found = TypeVar("Found")
Emissions = tuple[Tensor, Tensor]  # log-probabilities [B, T', V], lengths [B]


class _Underway(NamedTuple, Generic[Item, Found]):
    batch: list[Item]
    heard: Future[Emissions]
    found: Future[Found]


class Workers:
    """Threads of a process in which all its networks and searches compute.

    They are started once, since others may inherit what these are told, see `pool_with_cores`.

    Args:
        threads: of torch, which the networks share.
    """

    _started: ClassVar[dict[tuple[int, int], "Workers"]] = {}
    _starting = Lock()

    def __init__(self, threads: int) -> None:
        self._count = min(threads, _NETWORKS)
        self._network = pool_with_cores(self._count, "asr-network", -(-threads // self._count))
        self._searcher = pool_with_cores(_SEARCHERS, "asr-search")

    @classmethod
    def of_this_process(cls) -> "Workers":
        """For as many threads as torch has here; a fork has none of its parent's."""
        key = os.getpid(), torch.get_num_threads()
        with cls._starting:
            if key not in cls._started:
                cls._started[key] = cls(key[1])
            return cls._started[key]

    def at_once(self, packaged: Packaged) -> int:
        """Batches that are in the network at a time."""
        return self._count if packaged.device == "cpu" else 1

    def run(
        self,
        packaged: Packaged,
        batches: Iterable[list[Item]],
        waveform: Callable[[Item], Tensor],
        search: Callable[[list[Item], Tensor, Tensor], Found],
    ) -> Generator[tuple[list[Item], Found], None, None]:
        """Each batch with what `search` makes of its emissions, in order.

        Args:
            packaged: the network and its device.
            batches: items that are padded to one length; asked for as there is room.
            waveform: an item's samples [N].
            search: called in threads, with a batch, log-probabilities [B, T', V] and lengths [B].
        """
        # No frame that an error passes keeps a future: that would keep the error, and the error
        # all its frames, with the search and its processes, until garbage is next collected.
        underway: deque[_Underway[Item, Found]] = deque()

        def results(at_most: int) -> Iterator[tuple[list[Item], Found]]:
            while underway and (len(underway) > at_most or underway[0].found.done()):
                batch, result = underway[0].batch, underway[0].found.result()
                underway.popleft()
                yield batch, result

        def seek(batch: list[Item], heard: Future[Emissions]) -> Found:
            try:
                emissions = heard.result()
            finally:
                del heard
            with torch.inference_mode():
                return search(batch, *emissions)

        def ask(batch: list[Item]) -> _Underway[Item, Found]:
            heard = self._hear(packaged, list(map(waveform, batch)))
            return _Underway(batch, heard, self._searcher.submit(seek, batch, heard))

        try:
            for batch in batches:
                underway.append(ask(batch))
                yield from results(at_most=self._count + _AHEAD)
            yield from results(at_most=0)
        finally:
            _abandon(underway)

    def _hear(self, packaged: Packaged, waveforms: list[Tensor]) -> Future[Emissions]:
        """What the network hears; on a GPU it is asked here, where it is the caller's."""
        if packaged.device == "cpu":
            return self._network.submit(_emissions, packaged, waveforms)
        heard: Future[Emissions] = Future()
        heard.set_result(_emissions(packaged, waveforms))
        return heard


def _abandon(underway: deque[_Underway[Item, Found]]) -> None:
    """What somebody has stopped asking for, or what came after an error."""
    parts: list[Future[Any]] = [part for batch in underway for part in batch[1:]]
    underway.clear()
    running = [part for part in parts if not part.cancel()]
    if not is_ours():
        wait(running)


def _emissions(packaged: Packaged, waveforms: list[Tensor]) -> Emissions:
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return packaged.emissions(pad_sequence(waveforms, batch_first=True), lengths)
