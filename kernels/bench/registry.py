"""What a benchmark is, and the list of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Size of the problem: `layers` of D -> 2 x H, both directions, over [T, B, D]."""

    batch: int = 24  # B
    frames: int = 130  # T
    input: int = 512  # D
    hidden: int = 256  # H per direction
    layers: int = 1


@dataclass(frozen=True)
class Rival:
    """One way of doing the job: what is timed under each heading."""

    name: str
    passes: dict[str, Call]  # heading, such as "forward + backward" -> one run of it


#: Builds the rivals on a device, the op of this package last. AssertionError: it is not right.
Benchmark = Callable[[Shape, torch.device], list[Rival]]

BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Decorator that adds a benchmark to the list as `name`."""

    def add(build: Benchmark) -> Benchmark:
        BENCHMARKS[name] = build
        return build

    return add
