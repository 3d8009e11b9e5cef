"""`python -m kernels.bench plan`: how a recurrence would be laid out on a card, and why."""

from kernels.backends.triton.plan import DEVICES, DType, Pass, Plan, Problem, make_plan
from kernels.cells import Cell

CARDS = tuple(DEVICES)
DTYPES: dict[str, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PASSES: tuple[Pass, ...] = ("forward", "backward")


def explain(cell: Cell, batch: int, hidden: int, directions: int, dtype: str, device: str) -> str:
    """The plans of both passes; `dtype` is a key of DTYPES, `device` one of CARDS. Needs no GPU."""
    card = DEVICES[device]
    parts = [f"{cell} H={hidden} B={batch} {dtype}, directions: {directions}, on {card.name}"]
    for pass_ in PASSES:
        problem = Problem(pass_, cell, batch, hidden, directions, DTYPES[dtype])
        parts.append(f"{pass_}: {_layout(make_plan(problem, card))}")
    return "\n".join(parts)


def _layout(plan: Plan) -> str:
    mode = "persistent" if plan.persistent else "stepped"
    layout = plan.layout
    sizes = (
        f"{layout.block_b} utterances x {layout.block_h} units a program, tiles of "
        f"{layout.block_k} columns, {layout.num_warps} warps"
    )
    return "\n".join([f"{mode}, {sizes}", *(f"  {reason}" for reason in plan.reasons)])
