"""What is compiled before a benchmark; that Triton finds it again needs a card."""

import os

import pytest
import torch

from kernels.backends.triton.plan import DEVICES
from kernels.bench import recurrent
from kernels.bench.grid import Grid
from kernels.bench.precompile import Task, compile_task, in_processes, tasks
from kernels.bench.registry import Shape

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
H200 = DEVICES["h200"]


def test_cells_that_share_their_kernels_are_compiled_once() -> None:
    one = [("lstm", Shape(batch=32, frames=T, input=1024, hidden=512)) for T in (100, 1600)]
    numbers = [task.precision for task in tasks(one, CUDA, H200)]
    assert numbers == [0, 1, 2, 3]  # both ways to bf16 launch the same
    every = tasks(Grid(["lstm", "gru"]).cells(), CUDA, H200)
    assert len(set(every)) == len(every) < 2 * 16 * 4  # ops, H and B, kinds of products
    assert {(task.op, task.shape.hidden) for task in every} == {
        (op, H) for op in ("lstm", "gru") for H in (320, 512, 768, 1024)
    }
    assert {task.shape.frames for task in every} == {2}


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_a_task_runs(op: str) -> None:
    compile_task(Task(op, Shape(3, 2, 4, 5), 0, CPU))


def test_a_task_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("out of resource: shared memory")

    monkeypatch.setattr(recurrent, "assert_matches_torch", refuse)
    with pytest.raises(RuntimeError, match="out of resource"):
        compile_task(Task("lstm", Shape(3, 2, 4, 5), 0, CPU))


def test_what_fails_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    in_processes(abs, [-1, "one", 2], jobs=2)
    assert capsys.readouterr().err == "1 of 3 not compiled ahead\n"
    in_processes(os._exit, [1, 1], jobs=1)  # as a compiler that crashes
    assert capsys.readouterr().err == "2 of 2 not compiled ahead\n"
