"""`python -m kernels.bench COMMAND`: speeds beside those of rivals, and what explains them."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_args

import torch

import kernels.bench.ctc  # adds ctc
import kernels.bench.recurrent  # noqa: F401  (adds lstm, gru and rnn)
from kernels.bench.grid import BATCH, FRAMES, HIDDEN, Grid, run_grid
from kernels.bench.machine import machine
from kernels.bench.picture import draw
from kernels.bench.registry import BENCHMARKS, Benchmark, Shape
from kernels.bench.report import load, output_file, save, table, title
from kernels.bench.run import run
from kernels.cells import Cell

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit status 1 if a result is wrong, which has no speed."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "compile":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    status: int = options.function(options)
    return status


def _op(options: Options) -> int:
    spec = BENCHMARKS[options.command]
    device = _device(options)
    shape = spec.shape(**{field.name: getattr(options, field.name) for field in fields(spec.shape)})
    print(f"{options.command}: {shape}")
    if isinstance(shape, Shape):
        _compile_ahead([(options.command, shape)], device)
    try:
        record = run(options.command, shape, device, options.repeats)
    except AssertionError as error:
        print(f"{options.command}: not timed, its result is wrong: {error}", file=sys.stderr)
        return 1
    print(table(record))
    if options.json:
        save(options.json, record)
    for rival, what in record.wrong.items():
        print(f"{rival}: not timed, its result is wrong: {what}", file=sys.stderr)
    return 1 if record.wrong else 0


def _grid(options: Options) -> int:
    device = _device(options)
    sizes = (options.hidden, options.batch, options.frames)
    grid = Grid(options.op, *sizes, options.seconds, options.repeats)
    return run_grid(grid, device, options.json, partial(_compile_ahead, device=device))


def _compile_ahead(cells: list[tuple[str, Shape]], device: torch.device) -> None:
    if device.type == "cuda":
        from kernels.bench.precompile import precompile  # imports Triton

        precompile(cells, device)


def _picture(options: Options) -> int:
    try:
        draw(load(options.json), options.png)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"picture: {error}", file=sys.stderr)
        return 1
    return 0


def _plan(options: Options) -> int:
    from kernels.bench.explain import explain  # imports Triton

    sizes = (options.batch, options.hidden, options.directions)
    print(explain(options.cell, *sizes, options.dtype, options.device))
    return 0


def _layouts(options: Options) -> int:
    from kernels.bench.layouts import problems, run_layouts  # imports Triton

    if not torch.cuda.is_available():
        print(
            "layouts: needs a GPU, to time kernels on; plan and compile need none", file=sys.stderr
        )
        return 1
    todo = problems(options.cell, options.hidden, options.batch)
    return run_layouts(todo, options.frames, options.repeats, options.jobs, options.json)


def _compile(options: Options) -> int:
    from kernels.bench.compiled import main as compile_all  # imports Triton

    return compile_all(options.rest)


def _device(options: Options) -> torch.device:
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    print(title(machine(device)) + ("" if gpu else "; no GPU here: these are the CPU backends"))
    return device


def _positive(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, function: Callable[[Options], int], help: str, own_help: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help, add_help=own_help)
        command.set_defaults(function=function)
        return command

    for name, spec in sorted(BENCHMARKS.items()):
        _add_op(add(name, _op, f"time {name} beside its rivals"), spec)

    grid = add("grid", _grid, "time the grid of the targets, within a number of seconds")
    grid.add_argument("--op", nargs="+", choices=("lstm", "gru", "rnn"), default=["lstm"])
    for size, default in (("hidden", HIDDEN), ("batch", BATCH), ("frames", FRAMES)):
        grid.add_argument(
            f"--{size}", nargs="+", type=_positive, default=default, help="default: %(default)s"
        )
    grid.add_argument("--seconds", type=_positive, default=300, help="default: %(default)s")
    grid.add_argument(
        "--json", type=output_file, metavar="FILE", required=True, help="add a line a cell to FILE"
    )
    _add_runs(grid)

    picture = add("picture", _picture, "draw the times of a file of --json, beside the floor")
    picture.add_argument("json", type=Path, metavar="JSON")
    picture.add_argument("png", type=Path, metavar="PNG")

    plan = add("plan", _plan, "say how a recurrence would be laid out on a card, and why")
    plan.add_argument("--hidden", type=_positive, required=True)
    plan.add_argument("--batch", type=_positive, required=True)
    plan.add_argument("--cell", choices=get_args(Cell), default="lstm")
    plan.add_argument("--directions", type=int, choices=(1, 2), default=2)
    plan.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    plan.add_argument(
        "--device", choices=("a100", "h100", "h200", "b200", "mi300x"), default="h200"
    )

    layouts = add(
        "layouts", _layouts, "time every layout of a recurrence, to fill the plan's table"
    )
    layouts.add_argument("--cell", choices=("lstm", "gru", "rnn_tanh"), default="lstm")
    for size, default in (("hidden", HIDDEN), ("batch", BATCH)):
        layouts.add_argument(
            f"--{size}", nargs="+", type=_positive, default=default, help="default: %(default)s"
        )
    for size, count in (("frames", 200), ("repeats", 10), ("jobs", 8)):
        layouts.add_argument(
            f"--{size}", type=_positive, default=count, help="default: %(default)s"
        )
    layouts.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        required=True,
        help="add a line a layout to FILE",
    )

    add("compile", _compile, "compile every kernel ahead of time and show what it takes", False)
    return parser


def _add_op(command: argparse.ArgumentParser, spec: Benchmark) -> None:
    for field in fields(spec.shape):
        command.add_argument(
            f"--{field.name}",
            type=partial(_positive, least=field.metadata.get("least", 1)),
            default=field.default,
            help="default: %(default)s",
        )
    command.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the times to FILE too"
    )
    _add_runs(command)


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repeats", type=_positive, default=10, help="default: %(default)s")
    command.add_argument("--threads", type=_positive, help="of the CPU; default: torch's choice")


if __name__ == "__main__":
    sys.exit(main())
