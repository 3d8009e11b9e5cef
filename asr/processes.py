"""Several processes train one model, each on its own device and its own share of the batches.

`torchrun` starts them; without it there is one, and nothing here talks to anybody.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from asr.device import choose_device
from asr.errors import AsrError, ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of one training as one of them sees them."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def ours(self, items: Sequence[T]) -> list[T]:
        """This one's share: every `size`-th, where the last round lacks some, from its beginning.

        All shares are of one length, as all processes take each step together.
        """
        rounds = [items[first : first + self.size] for first in range(0, len(items), self.size)]
        return [entries[self.rank % len(entries)] for entries in rounds]

    def loading_threads(self, device: str) -> int:
        """How many are to read audio. On a CPU 2: the network wants the cores.

        For a GPU this machine's cores but one for each process, from 2 to 16: a core reads and
        resamples some 2,000 seconds of speech a second, and each thread's batch takes memory.
        """
        if device == "cpu":
            return 2
        cores = os.cpu_count() or 2
        if hasattr(os, "sched_getaffinity"):  # not on a Mac
            cores = len(os.sched_getaffinity(0))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.size > 1 else 1
        return min(16, max(2, cores // here - 1))

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give all the first one's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each by its mean over all, this one's counted `weight` times; in one message.

        float32 tensors of one device; all processes end with the same bits. It runs when the
        backward pass has ended: the recurrence's kernels need the whole GPU for themselves.
        """
        if self.size > 1:
            flat = torch.cat([*(t.detach().flatten() for t in tensors), tensors[0].new_ones(1)])
            flat *= weight
            dist.all_reduce(flat)
            flat /= flat[-1].clone()
            means = flat[:-1].split([tensor.numel() for tensor in tensors])
            for tensor, mean in zip(tensors, means, strict=True):
                tensor.detach().copy_(mean.view_as(tensor))

    def total(self, *values: float) -> list[float]:
        """Sum of each value over all."""
        if self.size == 1:
            return [*values]
        device = "cpu" if dist.get_backend() == "gloo" else "cuda"
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def chain(self, words: Sequence[str]) -> list[str]:
        """All processes' words after each other."""
        if self.size == 1:
            return [*words]
        parts: list[Sequence[str]] = [()] * self.size
        dist.all_gather_object(parts, words)
        return [word for part in parts for word in part]


ALONE = Processes()


@contextmanager
def joined(device: str | None) -> Iterator[tuple[Processes, str]]:
    """The processes that torchrun has started, and this one's device: each takes its own GPU.

    Raises:
        ConfigError: there is no such device on this machine, or not one for each process.
        AsrError: another process has ended, so that this one cannot go on.
    """
    device = choose_device(device)
    if not dist.is_torchelastic_launched():
        yield Processes(), device
        return
    if device != "cpu":
        device = _own_gpu(device)
        torch.cuda.set_device(device)
    with _others_alive():
        if device == "cpu":
            dist.init_process_group("gloo")
        else:
            dist.init_process_group("nccl", device_id=torch.device(device))
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    # Not where this one has failed: NCCL would wait for the others, and they wait for this one.
    dist.destroy_process_group()


def _own_gpu(device: str) -> str:
    if device != "cuda":
        raise ConfigError(
            f"device: expected cpu or cuda of processes that torchrun starts, got {device!r}; "
            "CUDA_VISIBLE_DEVICES picks GPUs"
        )
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > gpus:
        raise ConfigError(
            f"torchrun: expected at most {gpus} processes, a GPU for each, got {here}"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # NCCL's errors are of a type of their own, gloo's are not.
        if not isinstance(error, dist.DistError) and "by peer" not in str(error):
            raise
        raise AsrError("another process of this training has ended; it says why") from None
