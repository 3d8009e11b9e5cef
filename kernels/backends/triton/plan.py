"""How a recurrence is laid out on a GPU: a pure function, so it can be read, tested and predicted.

`make_plan` tries every layout and takes the one whose model of a step is the shortest. Where the
layout of a shape has been measured on a card, `MEASURED` holds it and overrules the model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from kernels.cells import GATES, Cell

Pass = Literal["forward", "backward"]
DType = Literal["float32", "float16", "bfloat16"]

#: Bytes of an element.
WIDTH: Mapping[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class DeviceProperties:
    """What a plan needs to know of a GPU."""

    name: str
    processors: int  # streaming multiprocessors, or compute units
    shared_bytes: int  # that one program may have
    registers: int = 65536  # of 32 bits, of a processor
    warp: int = 32  # threads


DEVICES: Mapping[str, DeviceProperties] = {
    "a100": DeviceProperties("A100", 108, 166_912),
    "h100": DeviceProperties("H100", 132, 232_448),
    "h200": DeviceProperties("H200", 132, 232_448),
    "b200": DeviceProperties("B200", 148, 232_448),
    "mi300x": DeviceProperties("MI300X", 304, 65_536, registers=131_072, warp=64),
}


@dataclass(frozen=True)
class Problem:
    """One layer, one or both directions."""

    pass_: Pass
    cell: Cell
    batch: int  # B
    hidden: int  # H
    directions: int
    dtype: DType


@dataclass(frozen=True)
class Layout:
    """Sizes of a program's share, and of the program."""

    block_b: int  # utterances of a group
    block_h: int  # hidden units of a program
    block_k: int  # columns of a tile
    ahead: int  # tiles loaded before the first is waited for
    num_warps: int


@dataclass(frozen=True)
class Plan:
    """How the launches of one recurrence look."""

    layout: Layout
    persistent: bool  # else a launch a step
    slices: int  # programs of a group
    groups: int  # of the whole batch
    groups_per_launch: int  # that are resident together
    reasons: tuple[str, ...]
    waits: bool = True  # False: nothing does, to time what waiting costs; results are wrong then

    @property
    def launches(self) -> int:
        """Launches, one after another, that the batch needs; stepped, that a step needs."""
        return -(-self.groups // self.groups_per_launch)


#: Layouts that a card has shown to be the fastest; none has been measured yet.
MEASURED: Mapping[tuple[str, Problem], Layout] = {}

#: The model of a step: microseconds, and bytes a microsecond of one processor. Sources:
#: a store, the L2 cache and a load in about 800 cycles, and the datasheet's 1.7 GHz with
#: 128 B a clock from shared memory, about 40 B a clock from L2. Estimates until measured.
HAND_OVER = 0.5
WAIT_OF_A_TILE = 0.14  # eight barriers in the compiled code, of about 30 cycles
POINTWISE = 0.15
SHARED_BYTES_PER_US = 128 * 1700.0
L2_BYTES_PER_US = 40 * 1700.0
CYCLES_OF_A_DOT = 33 / 1700.0  # 16 columns of k

#: What ahead-of-time compiles of the LSTM in bfloat16 take without spilling, with 255 registers:
#: elements of h a group reads each step, and elements in flight.
MOST_READ: Mapping[Pass, int] = {"forward": 32_768, "backward": 16_384}
MOST_IN_FLIGHT: Mapping[Pass, int] = {"forward": 8192, "backward": 4096}

#: Tiles loaded before the first is waited for; products of float32 take more registers, and a CIFG
#: spills with four.
MOST_AHEAD: Mapping[DType, int] = {"float32": 3, "float16": 8, "bfloat16": 8}


@lru_cache(maxsize=4096)  # a millisecond of work
def make_plan(problem: Problem, device: DeviceProperties) -> Plan:
    """The plan of `problem` on `device`.

    Persistent wherever a group with its weights fits on the device at once; otherwise stepped.
    """
    measured = MEASURED.get((device.name, problem))
    candidates = [measured] if measured else list(_layouts(problem))
    plans = _that_fit(problem, candidates, device)
    if plans:
        best = min(plans, key=lambda plan: plan.launches * microseconds(problem, plan.layout))
        why = "measured on this card" if measured else f"best of {len(plans)} layouts that fit"
        return replace(best, reasons=(*_explanation(problem, best, device), why))
    smallest = min(
        candidates, key=lambda layout: (_shared_bytes(problem, layout), -layout.num_warps)
    )
    slices, groups = _counts(problem, smallest)
    misfit = _misfit(problem, smallest, device)
    reasons = (f"stepped, a launch a step: even {smallest.block_h} units a program do not fit:",)
    return Plan(smallest, False, slices, groups, groups, (*reasons, str(misfit)))


def persistent_plans(problem: Problem, device: DeviceProperties) -> list[Plan]:
    """One for every layout that fits, for measuring."""
    return _that_fit(problem, _layouts(problem), device)


def _that_fit(problem: Problem, layouts: Iterable[Layout], device: DeviceProperties) -> list[Plan]:
    fitting = [layout for layout in layouts if _misfit(problem, layout, device) is None]
    return [_persistent(problem, layout, device) for layout in fitting]


def _layouts(problem: Problem) -> Iterator[Layout]:
    most = MOST_IN_FLIGHT[problem.pass_] * 2 // WIDTH[problem.dtype]
    for block_b in (16, 32, 64):
        if block_b > 16 and block_b >= 2 * problem.batch:
            continue  # more than half of the rows would be empty
        for block_k in _block_ks(problem, most // block_b):
            ahead = max(1, min(MOST_AHEAD[problem.dtype], most // (block_b * block_k)))
            for block_h in (16, 32, 64):
                if block_h > 16 and block_h >= 2 * problem.hidden:
                    continue
                for num_warps in (4, 8):
                    yield Layout(block_b, block_h, block_k, ahead, num_warps)


def _block_ks(problem: Problem, most: int) -> list[int]:
    """Powers of two up to `most`: the widest that pads H by up to an eighth, and wider ones.

    Wider tiles are fewer, which saves waits, and pad more, which costs products: by up to 60 %, in
    float32, whose products take more registers, not; in a single tile of up to 256 columns by
    whatever it takes.
    """
    hidden, share = problem.hidden, 1.6 if WIDTH[problem.dtype] == 2 else 0.0
    widths = [k for k in (16, 32, 64, 128, 256, 512) if k <= most]
    padded = {k: -(-hidden // k) * k for k in widths}
    little = max((k for k in widths if padded[k] <= hidden * 9 / 8), default=16)
    single = max(16, 1 << (hidden - 1).bit_length())
    wider = [
        k
        for k in widths
        if k > little and (padded[k] <= hidden * share or (k == single and single <= 256))
    ]
    return [little, *wider]


def _counts(problem: Problem, layout: Layout) -> tuple[int, int]:
    """(slices, groups)."""
    return -(-problem.hidden // layout.block_h), -(-problem.batch // layout.block_b)


def _gates(problem: Problem) -> int:
    """Side by side in the weights' tiles; three are padded to four."""
    return 4 if GATES[problem.cell] > 1 else 1


def _chunks(problem: Problem, layout: Layout) -> int:
    return -(-problem.hidden // layout.block_k)


def _weight_bytes(problem: Problem, layout: Layout) -> int:
    rows = _chunks(problem, layout) * layout.block_k
    return _gates(problem) * rows * layout.block_h * WIDTH[problem.dtype]


def _tile_bytes(problem: Problem, layout: Layout) -> int:
    """Of one chunk that a program reads of the others each step."""
    parts = 1 if problem.pass_ == "forward" else _gates(problem)
    return parts * layout.block_k * layout.block_b * WIDTH[problem.dtype]


def _shared_bytes(problem: Problem, layout: Layout) -> int:
    """Weights, one chunk on its way to the tensor cores, and what reductions need.

    In the backward pass sums of products change hands between threads, too, after the last chunk.
    """
    passing = _tile_bytes(problem, layout)
    if problem.pass_ == "backward":
        passing = max(passing, layout.block_b * _gates(problem) * layout.block_h * 4)
    return _weight_bytes(problem, layout) + passing + 4096


def _misfit(problem: Problem, layout: Layout, device: DeviceProperties) -> str | None:
    """Why a group cannot be resident with this layout; None if it can."""
    slices, _ = _counts(problem, layout)
    programs = slices * problem.directions
    if programs > device.processors:
        return f"{programs} programs, {device.processors} processors"
    shared = _shared_bytes(problem, layout)
    if shared > device.shared_bytes:
        return f"{shared / 1024:.0f} KB of weights and tiles, {device.shared_bytes // 1024} KB"
    words, threads = _tile_bytes(problem, layout) // 4, layout.num_warps * device.warp
    if words < threads:
        # Two threads would load a word, one would look whether it is there, and both would use it.
        return f"tiles of {words} words for {threads} threads"
    most = MOST_READ[problem.pass_] * 2 // WIDTH[problem.dtype]
    if layout.block_b * problem.hidden > most:
        return f"{layout.block_b} rows of {problem.hidden} are read a step, {most} elements fit"
    return None


def _persistent(problem: Problem, layout: Layout, device: DeviceProperties) -> Plan:
    slices, groups = _counts(problem, layout)
    resident = device.processors // (slices * problem.directions)
    return Plan(layout, True, slices, groups, min(groups, resident), ())


def microseconds(problem: Problem, layout: Layout) -> float:
    """The model of one step of one launch."""
    chunks = _chunks(problem, layout)
    tiles = chunks * _tile_bytes(problem, layout)
    trips = -(-chunks // layout.ahead)  # that do not overlap
    depth = chunks * layout.block_k / 16 * layout.block_b / 16
    # Of 8 columns, or of gates in the backward pass, that one warp multiplies.
    share = max(1.0, _gates(problem) * layout.block_h / 8 / layout.num_warps)
    return (
        HAND_OVER * trips
        + chunks * WAIT_OF_A_TILE
        + tiles / L2_BYTES_PER_US
        + (2 * tiles + _weight_bytes(problem, layout)) / SHARED_BYTES_PER_US
        + depth * share * CYCLES_OF_A_DOT
        + POINTWISE * max(1.0, layout.block_b * layout.block_h / 32 / layout.num_warps)
    )


def _explanation(problem: Problem, plan: Plan, device: DeviceProperties) -> tuple[str, ...]:
    layout = plan.layout
    programs = plan.slices * plan.groups_per_launch * problem.directions
    return (
        f"{programs} programs on {device.processors} processors: {plan.slices} slices of "
        f"{layout.block_h} units, {plan.groups_per_launch} of {plan.groups} groups of "
        f"{layout.block_b} utterances at once, {problem.directions} directions",
        f"weights {_weight_bytes(problem, layout) / 1024:.0f} KB a program, of "
        f"{device.shared_bytes // 1024} KB shared memory",
        f"model of a step: {microseconds(problem, layout):.2f} us, of which hand-over "
        f"{HAND_OVER} us; {plan.launches} launches",
    )
