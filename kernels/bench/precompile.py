"""Kernels that a benchmark is about to launch, compiled by several processes at once.

Compiling takes longer than timing, and Triton compiles one kernel after another, each where it is
launched first. It keeps what it has compiled in a folder that processes share.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar, get_args

import torch

from kernels.backends.triton.launch import device_properties, dtype_name
from kernels.backends.triton.plan import DeviceProperties, Layout, Pass, Problem, make_plan
from kernels.bench.job import Job
from kernels.bench.recurrent import ours, precisions
from kernels.bench.registry import Shape
from kernels.cells import Cell

CELLS: dict[str, Cell] = {"lstm": "lstm", "gru": "gru", "rnn": "rnn_tanh"}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """All kernels of one precision of an op."""

    op: str
    shape: Shape
    precision: int  # of `precisions`
    device: torch.device


def precompile(cells: Iterable[tuple[str, Shape]], device: torch.device) -> None:
    """Compile what these cells will launch on a GPU."""
    todo = tasks(cells, device, device_properties(device))
    in_processes(compile_task, todo, jobs=os.cpu_count() or 1)


def tasks(
    cells: Iterable[tuple[str, Shape]], device: torch.device, properties: DeviceProperties
) -> list[Task]:
    """One of all cells that share their kernels: those with one layout, whatever T."""
    different: dict[tuple[str, int, str, tuple[Layout, ...]], Task] = {}
    numbered = enumerate(precisions(device))
    for (op, shape), (number, precision) in itertools.product(cells, numbered):
        dtype = dtype_name(precision.autocast or precision.dtype)
        kind = precision.name if dtype == "float32" else dtype  # ieee and tf32 differ
        layouts = tuple(
            make_plan(Problem(p, CELLS[op], shape.batch, shape.hidden, 2, dtype), properties).layout
            for p in get_args(Pass)
        )
        task = Task(op, replace(shape, frames=2), number, device)
        different.setdefault((op, shape.hidden, kind, layouts), task)
    return list(different.values())


def compile_task(task: Task) -> None:
    """Compile by running both passes once, over two frames."""
    job = Job.of(task.op.upper(), task.shape, task.device)
    rival = ours(job, task.device, precisions(task.device)[task.precision])
    if rival.wrong:
        raise RuntimeError(rival.wrong)
    for run_once in rival.passes.values():
        run_once()


def in_processes(work: Callable[[Item], Any], todo: Iterable[Item], jobs: int) -> None:
    """`work` on everything; what fails fails again, and is named, where it is timed."""
    todo = list(todo)
    waiting: list[Future[Any]] = []
    # With one process that dies, the whole pool is broken, and takes no more work.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool, suppress(BrokenProcessPool):
        for item in todo:
            waiting.append(pool.submit(work, item))
    failed = len(todo) - sum(future.exception() is None for future in waiting)
    if failed:
        print(f"{failed} of {len(todo)} not compiled ahead", file=sys.stderr)
