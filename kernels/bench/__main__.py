"""`python -m kernels.bench OP`: time an op beside its rivals."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

import kernels.bench.recurrent  # noqa: F401  (adds lstm and gru)
from kernels.bench.registry import BENCHMARKS, Shape
from kernels.bench.report import machine, save, table
from kernels.bench.timing import measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; exit status 1 if the op's result is wrong, which has no speed."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    shape = Shape(**{field.name: getattr(options, field.name) for field in fields(Shape)})
    print(machine(device) + ("" if gpu else "; no GPU here: these are the CPU backends"))
    print(f"{options.op}: {shape}")
    try:
        rivals = BENCHMARKS[options.op](shape, device)
    except AssertionError as error:
        print(f"{options.op}: not timed, its result is wrong: {error}", file=sys.stderr)
        return 1
    timings = measure(rivals, device, options.repeats)
    print(table(timings))
    if options.json:
        save(options.json, options.op, shape, device, timings)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("op", choices=sorted(BENCHMARKS))
    for field in fields(Shape):
        parser.add_argument(
            f"--{field.name}", type=_positive, default=field.default, help="default: %(default)s"
        )
    parser.add_argument("--repeats", type=_positive, default=10, help="default: %(default)s")
    parser.add_argument("--threads", type=_positive, help="of the CPU; default: torch's choice")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to FILE too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
