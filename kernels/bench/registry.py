"""What a benchmark is, and the list of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    #: GPU kernels timed alone: heading -> (heading of the pass they run in, name they begin with).
    kernels: dict[str, tuple[str, str]] = field(default_factory=dict)
    skipped: str = ""  # why it could not take part
    wrong: str = ""  # what is wrong with its result; a wrong result has no speed


def entrant(name: str, make: Callable[[str], Rival]) -> Rival:
    """`make(name)` if it runs, or why it does not: one that fails must not stop the others."""
    try:
        rival = make(name)
        for run_once in rival.passes.values():
            run_once()
    except Exception as error:  # of a library, a driver, the card's memory: they share no class
        return Rival(name, {}, skipped=f"{type(error).__name__}: {error}".split("\n")[0])
    return rival


def fault(check: Callable[[], None]) -> str:
    """What `check`, of this package's op, says is wrong, or why it does not run; else nothing."""
    try:
        check()
    except AssertionError as error:
        return str(error) or repr(error)
    except Exception as error:  # of a compiler or a card, which may take other shapes and dtypes
        return f"{type(error).__name__}: {error}"
    return ""


#: Builds the rivals for a shape on a device, the op of this package last.
Build = Callable[[Any, torch.device], list[Rival]]


@dataclass(frozen=True)
class Benchmark:
    """An op and its rivals."""

    build: Build
    #: Dataclass of integers, each with a default, `frames` among them; metadata's "least", or 1.
    shape: type[Any]
    floor_us: Mapping[str, float]  # heading -> microseconds a step that physics allows, a model


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(
    name: str, shape: type[Any] = Shape, floor_us: Mapping[str, float] | None = None
) -> Callable[[Build], Build]:
    """Decorator that adds a benchmark to the list as `name`."""

    def add(build: Build) -> Build:
        BENCHMARKS[name] = Benchmark(build, shape, floor_us or {})
        return build

    return add
