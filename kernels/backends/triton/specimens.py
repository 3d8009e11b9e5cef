"""Every recurrence as a card would launch it, for compiling it without one."""

from collections.abc import Iterator
from typing import get_args

from kernels.backends.triton.backward import backward_kernel
from kernels.backends.triton.forward import forward_kernel
from kernels.backends.triton.launch import DTYPES, MAX_REGISTERS
from kernels.backends.triton.plan import DEVICES, WIDTH, Pass, Plan, Problem, make_plan
from kernels.bench.compiled import Specimen
from kernels.cells import GATES, LSTMS, Cell

TARGET_OF = {"a100": "sm_80", "h200": "sm_90", "b200": "sm_100", "mi300x": "gfx942"}

#: The grid of shapes that `kernels.bench grid` times, both directions.
HIDDEN = (320, 512, 768, 1024)
BATCH = (8, 16, 32, 64)

_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def problems() -> Iterator[Problem]:
    """The LSTM in bfloat16 over the whole grid, other cells and dtypes at some of its points."""
    for pass_ in get_args(Pass):
        for hidden in HIDDEN:
            for batch in BATCH:
                yield Problem(pass_, "lstm", batch, hidden, 2, "bfloat16")
        for cell in get_args(Cell):
            yield Problem(pass_, cell, 32, 512, 2, "float16")
            yield Problem(pass_, cell, 32, 320, 2, "float32")
        yield Problem(pass_, "lstm", 3, 100, 1, "bfloat16")
        yield Problem(pass_, "lstm", 2, 1100, 2, "float32")  # too wide for any shared memory


#: Peepholes and recurrent dropout, by name.
VARIANTS = {
    "": {"PEEPHOLE": False, "DROP": False},
    " peephole": {"PEEPHOLE": True, "DROP": False},
    " dropout": {"PEEPHOLE": False, "DROP": True},
}


def _choices(problem: Problem) -> Iterator[tuple[str, str]]:
    """Precision and variant."""
    for precision in ("tf32", "ieee") if problem.dtype == "float32" else ("ieee",):
        yield precision, ""
    if problem.cell in LSTMS and problem.dtype == "float16":
        yield from (("ieee", variant) for variant in VARIANTS if variant)


def specimens() -> list[Specimen]:
    """One for each problem, layout, precision, variant; a layout that targets share, once."""
    found: dict[tuple[Problem, Plan, str, str], list[str]] = {}
    for device, target in TARGET_OF.items():
        for problem in problems():
            plan = make_plan(problem, DEVICES[device])
            same = Plan(plan.layout, plan.persistent, 0, 0, 0, ())
            for choice in _choices(problem):
                found.setdefault((problem, same, *choice), []).append(target)
    return [_specimen(*key, tuple(targets)) for key, targets in found.items()]


def _specimen(
    problem: Problem, plan: Plan, precision: str, variant: str, targets: tuple[str, ...]
) -> Specimen:
    layout, cell, forward = plan.layout, problem.cell, problem.pass_ == "forward"
    constants: dict[str, object] = {
        "CELL": cell,
        "H": problem.hidden,
        "N": problem.directions,
        "BLOCK_B": layout.block_b,
        "BLOCK_H": layout.block_h,
        "BLOCK_K": layout.block_k,
        "AHEAD": layout.ahead,
        "DOT": DTYPES[problem.dtype],
        "PRECISION": precision,
        "KEEP": plan.persistent,
        "POLL": plan.persistent,
        **VARIANTS[variant],
    }
    constants |= {"SAVE_GATES": True, "SAVE_STATE": True} if forward else {"RAW": False}
    absent = [] if cell in LSTMS else ["c_state"] if forward else ["dc_state", "c_0"]
    absent += ["bias_hn"] if cell != "gru" and forward else []
    absent += [] if constants["PEEPHOLE"] else ["peephole"]
    absent += [] if constants["DROP"] else ["mask"]
    constants |= dict.fromkeys(absent)
    kernel = forward_kernel if forward else backward_kernel
    element = "*" + _SHORT[problem.dtype]
    states = {"h_state", "c_state", "c_0", "dh_state", "dc_state"}
    scalars = {"B", "first_group", "first_step", "last_step", "limit"}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in scalars:
            return "i32"
        if name in states:
            return "*fp32"
        return "*i32" if name in ("lengths", "lost") else element

    width = WIDTH[problem.dtype]
    operands = GATES[cell] if forward else GATES[cell] + 5  # dy, saved, its past, y, h_0; c_0
    mode = "persistent" if plan.persistent else "stepped"
    return Specimen(
        f"{problem.pass_} {cell} {_SHORT[problem.dtype]} H={problem.hidden} "
        f"B={problem.batch} N={problem.directions} {precision} {mode}{variant}",
        kernel,
        {name: kind(name) for name in kernel.arg_names},
        constants,
        {
            "num_warps": layout.num_warps,
            "num_stages": 1,
            "launch_cooperative_grid": plan.persistent,
            "maxnreg": MAX_REGISTERS,
        },
        targets=targets,
        # A stepped launch has no time loop to look into.
        step_bytes=None
        if not plan.persistent
        else layout.block_b * layout.block_h * (operands * width + 4),
        hands_over=plan.persistent,
    )
