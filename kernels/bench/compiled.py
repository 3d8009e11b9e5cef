"""`python -m kernels.bench compile`: what compilers make of every kernel, without a GPU.

Every specimen is compiled ahead of time for each of its targets and judged: nothing may spill, its
shared memory has to fit, and in one turn of the time loop no more may be loaded than a step needs,
so that weights stay on chip, while what other programs hand over is loaded past the L1 cache.
"""

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.bench.assembly import AMDGCN, SASS, Loop, longest_loop
from kernels.bench.report import output_file

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: Bytes that one program may have: the architectures' limits.
SHARED_LIMITS = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}

#: Modules of which `specimens()` gives the kernels.
SOURCES = (
    "kernels.backends.triton.specimens",
    "kernels.ctc.align_triton",
    "kernels.ctc.beam_triton",
    "kernels.ctc.loss_triton",
)


@dataclass(frozen=True)
class Specimen:
    """A kernel as one plan launches it. Pointers are aligned to 16 bytes, as torch's are."""

    name: str
    kernel: Any  # a function under @triton.jit
    #: Argument -> "*bf16", "i32", ...; "constexpr"; a tuple of these for a tuple.
    signature: Mapping[str, Any]
    #: Values of the constexprs; of those in tuples by their place, (argument, field, ...).
    constants: Mapping[Any, object] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)  # num_warps, num_stages, ...
    multiples_of_16: tuple[str, ...] = ()  # integer arguments that the launcher may find so
    targets: tuple[str, ...] = tuple(TARGETS)  # where the plan would launch it
    #: Bytes that a step may load plainly: what gates or dy need, less than the weights' slice and
    #: less than a tile that is handed over. None: no time loop.
    step_bytes: int | None = None
    hands_over: bool = False  # programs wait for each other's stores


@dataclass(frozen=True)
class Resources:
    """What a program takes on one target."""

    registers: int  # per thread; on AMD vector registers
    stack_bytes: int  # per thread; spilled registers live there
    shared_bytes: int  # per program
    threads: int  # per program
    loop: Loop | None  # None: the kernel has none, or could not be disassembled
    disassembled: bool

    @property
    def plain_bytes(self) -> int:
        """Loaded by a program in a turn of the loop, hand-over excluded."""
        return self.threads * self.loop.plain_bytes if self.loop else 0


def resources(specimen: Specimen, target: str) -> Resources:
    """Compile `specimen` for `target`, a key of TARGETS, and read the result; needs no GPU.

    Raises:
        RuntimeError: Triton is interpreting, so that there is nothing to compile, or the compiler
            failed, whose own message is on standard error.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("Triton is interpreting: compile with TRITON_INTERPRET=0")
    compiled = triton.compile(
        ASTSource(
            specimen.kernel,
            specimen.signature,
            constexprs=dict(specimen.constants),
            attrs=_attributes(specimen, target),
        ),
        target=TARGETS[target],
        options=dict(specimen.options),
    )
    threads = compiled.metadata.num_warps * TARGETS[target].warp_size
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        stack = _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        assembly: str | None = text
        dialect = AMDGCN
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            text = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
            registers = _number(r"\bREG:(\d+)", text)
            stack = _number(r"\bSTACK:(\d+)", text)
            dialect = SASS
            try:
                assembly = _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
            except subprocess.CalledProcessError:
                assembly = None
    loop = longest_loop(assembly, dialect) if assembly else None
    return Resources(registers, stack, compiled.metadata.shared, threads, loop, bool(assembly))


def faults(specimen: Specimen, target: str, found: Resources) -> list[str]:
    """What is wrong with a compiled specimen, nothing in most cases."""
    faults = []
    if found.stack_bytes:
        faults.append(f"spills: {found.stack_bytes} bytes of stack a thread")
    if found.shared_bytes > SHARED_LIMITS[target]:
        faults.append(f"{found.shared_bytes} bytes shared, limit {SHARED_LIMITS[target]}")
    if specimen.step_bytes is not None and found.disassembled:
        if found.loop is None:
            faults.append("no time loop found")
        elif found.loop.repeated_bytes:
            faults.append("plain loads in a loop within the time loop")
        elif found.plain_bytes > specimen.step_bytes:
            faults.append(f"loads {found.plain_bytes} bytes a step, needs {specimen.step_bytes}")
    if (
        specimen.hands_over
        and found.disassembled
        and not (found.loop and found.loop.coherent_loads)
    ):
        faults.append("hand-over is loaded through the L1 cache")
    return faults


def specimens() -> list[Specimen]:
    """All specimens of the package."""
    modules = [importlib.import_module(name) for name in SOURCES if importlib.util.find_spec(name)]
    return [specimen for module in modules for specimen in module.specimens()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 1 if any specimen has a fault, 2 if Triton is interpreting."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench compile", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="specimens with TEXT in the name"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the table to FILE too"
    )
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        print("compile: Triton is interpreting: set TRITON_INTERPRET=0", file=sys.stderr)
        return 2
    chosen = [specimen for specimen in specimens() if options.only in specimen.name]
    if not chosen:
        parser.error(f"no specimen with {options.only!r} in its name")
    rows: list[dict[str, Any]] = []
    print(_line(*_HEADINGS), flush=True)
    for specimen in chosen:
        for target in specimen.targets:
            if target in (options.target or TARGETS):
                rows.append(_row(specimen, target))
    for row in rows:
        for fault in row["faults"]:
            print(f"{row['specimen']} on {row['target']}: {fault}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(any(row["faults"] for row in rows))


_HEADINGS = (
    *("specimen", "target", "warps", "registers", "stack", "shared"),
    *("barriers a step", "spills a step", "coherent loads", "other bytes"),
)


def _row(specimen: Specimen, target: str) -> dict[str, Any]:
    """Compile, print a line at once and return it for machines."""
    row: dict[str, Any] = {"specimen": specimen.name, "target": target}
    try:
        found = resources(specimen, target)
    except Exception as error:  # the compiler's failures have no common class
        print(_line(specimen.name, target, "does not compile"), flush=True)
        return row | {"faults": [f"does not compile: {_reason(error)}"]}
    loop = found.loop
    unknown = "none" if found.disassembled else "unread"
    print(
        _line(
            *(specimen.name, target, found.threads // TARGETS[target].warp_size, found.registers),
            *(found.stack_bytes, found.shared_bytes),
            *(
                (loop.barriers, loop.spills, loop.coherent_loads, found.plain_bytes)
                if loop
                else (unknown,) * 4
            ),
        ),
        flush=True,
    )
    return row | asdict(found) | {"faults": faults(specimen, target, found)}


def _reason(error: BaseException) -> str:
    """The last line of what began it: those around it say where, in many lines."""
    while error.__cause__:
        error = error.__cause__
    return str(error).splitlines()[-1]


def _line(*cells: object) -> str:
    name, *others = map(str, cells)
    columns = zip(others, _HEADINGS[1:], strict=False)
    return "  ".join([name.ljust(48), *(c.rjust(max(6, len(head))) for c, head in columns)])


def _attributes(specimen: Specimen, target: str) -> dict[tuple[int, ...], list[list[object]]]:
    """What Triton's launcher would tell the compiler about arguments by their position."""
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for n, (name, kinds) in enumerate(specimen.signature.items()):
        for place, kind in _leaves(kinds, (n,)):
            if kind.startswith("*") or name in specimen.multiples_of_16:
                attributes[place] = [["tt.divisibility", 16]]
            if kind.startswith("*") and TARGETS[target].backend == "hip":
                attributes[place].append(["tt.pointer_range", 32])  # tensors below 2 GB
    return attributes


def _leaves(kinds: Any, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """The kinds of an argument that may be a tuple, with their places."""
    if isinstance(kinds, str):
        yield place, kinds
    else:
        for n, kind in enumerate(kinds):
            yield from _leaves(kind, (*place, n))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in what the disassembler printed"
    return int(found[1])


def _run(program: str, *arguments: str) -> str:
    return subprocess.run(
        [program, *arguments], check=True, capture_output=True, encoding="utf-8"
    ).stdout
