"""Triton's interpreter with the programs of a launch running at the same time.

The interpreter runs one program of a grid after another, so a persistent kernel, whose programs
wait for each other, would hang, or pass whatever it forgot to wait for. Here each program runs in
a forked process of its own, on tensors in shared memory. Stores reach the others while the launch
is running, because the interpreter works on the addresses of CPU tensors themselves.

With `delays`, programs sleep at random before they touch memory, and stores land in two parts, in
any order of their elements, as on a GPU. The same seed draws the same delays.
"""

import itertools
import math
import multiprocessing
import random
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, TensorHandle

Result = TypeVar("Result")

POLL_SECONDS = 2e-4  # a program that polls gives its core to the one it waits for
DELAY_SECONDS = 2e-3  # at most
DELAYED = 0.3  # share of the accesses


class DeadlockError(Exception):
    """Programs that had not finished when the time was up."""


class ProgramError(Exception):
    """An exception of a program, with its traceback."""


def run_concurrently(
    launch: Callable[[], Result], *, delays: int | None = None, timeout: float = 30.0
) -> Result:
    """`launch()`, where the programs of each Triton launch within it run at the same time.

    Tensors that kernels are given move to shared memory, in place.

    Args:
        launch: may launch several kernels, one after another, and do anything else around them.
        delays: seed of random delays; None for none.
        timeout: seconds that one launch of a kernel may take.

    Raises:
        DeadlockError: programs still ran at the end of `timeout`; names them.
        ProgramError: a program raised.
    """
    seeds = itertools.count()

    def run_grid(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                value.untyped_storage().share_memory_()
        number = next(seeds)

        def run_program(program: tuple[int, int, int]) -> None:
            rng = None if delays is None else random.Random(f"{delays} {number} {program}")
            _become(program, grid, rng)
            run_alone(GridExecutor(executor.fn, executor.arg_names, (1,)), *args, **kwargs)

        grid = _size(executor, args, kwargs)
        _run_all(run_program, [tuple(p) for p in np.ndindex(*grid)], timeout)

    run_alone = GridExecutor.__call__
    with mock.patch.object(GridExecutor, "__call__", run_grid):
        return launch()


def _size(executor: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, ...]:
    grid = executor.grid
    if callable(grid):
        names = dict(zip(executor.arg_names, args, strict=False))
        grid = grid(names | kwargs)
    return (*grid, *(1,) * (3 - len(grid)))


def _run_all(
    run: Callable[[Any], None], programs: Sequence[tuple[int, ...]], timeout: float
) -> None:
    """`run(program)` in a process for each program; waits for all of them, or kills them."""
    context = multiprocessing.get_context("fork")
    running: dict[int, tuple[tuple[int, ...], BaseProcess, Connection]] = {}
    try:
        for program in programs:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(run, program, sender, timeout))
            process.start()
            sender.close()
            running[process.sentinel] = (program, process, receiver)
        deadline = time.monotonic() + timeout
        while running:
            finished = wait(list(running), max(0.0, deadline - time.monotonic()))
            if not finished:
                stuck = ", ".join(str(program) for program, _, _ in running.values())
                raise DeadlockError(
                    f"after {timeout:g} s still running of {len(programs)}: {stuck}"
                )
            for sentinel in finished:
                program, process, receiver = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    report = receiver.recv() if receiver.poll() else f"exit {process.exitcode}"
                    raise ProgramError(f"program {program}: {report}")
                receiver.close()
    finally:
        for _, process, receiver in running.values():
            process.kill()
            process.join()
            receiver.close()


def _child(
    run: Callable[[Any], None], program: tuple[int, ...], sender: Connection, timeout: float
) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(timeout) + 5)  # should the parent die, so does this process
    torch.set_num_threads(1)
    try:
        run(program)
    except BaseException:
        sender.send(traceback.format_exc())
        raise SystemExit(1) from None


def _become(
    program: tuple[int, int, int], grid: tuple[int, ...], rng: random.Random | None
) -> None:
    """Make this process's interpreter that of one program of a grid, for good."""
    builder = interpreter.interpreter_builder
    builder.set_grid_dim(*grid)
    builder.set_grid_idx(*program)
    builder.set_grid_idx = builder.set_grid_dim = lambda *_: None
    load, store = builder.create_masked_load, builder.create_masked_store

    def pause(share: float) -> None:
        if rng and rng.random() < share:
            time.sleep(DELAY_SECONDS * rng.random())

    def masked_load(ptrs, mask, other, cache, eviction, is_volatile):  # type: ignore[no-untyped-def]
        if is_volatile:
            time.sleep(POLL_SECONDS)
        pause(DELAYED)
        return load(ptrs, mask, other, cache, eviction, is_volatile)

    def masked_store(ptrs, value, mask, cache, eviction):  # type: ignore[no-untyped-def]
        pause(DELAYED)
        first = np.ones_like(mask.data)
        if rng:
            first = np.random.default_rng(rng.getrandbits(32)).random(mask.data.shape) < 0.5
        store(ptrs, value, TensorHandle(mask.data & first, mask.dtype), cache, eviction)
        pause(1.0)
        store(ptrs, value, TensorHandle(mask.data & ~first, mask.dtype), cache, eviction)

    def delayed(access: Callable[..., Any]) -> Callable[..., Any]:
        def atomic(*args: Any) -> Any:
            time.sleep(POLL_SECONDS)
            pause(DELAYED)
            return access(*args)

        return atomic

    builder.create_masked_load = masked_load
    builder.create_masked_store = masked_store
    builder.create_atomic_rmw = delayed(builder.create_atomic_rmw)
    builder.create_atomic_cas = delayed(builder.create_atomic_cas)
