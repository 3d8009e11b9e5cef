"""From a plan to launches: grids, prepared buffers, and what happens when a wait is lost."""

import logging
from functools import cache
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.backends.triton.plan import DeviceProperties, DType, Plan, Problem, make_plan
from kernels.backends.triton.sync import EMPTY, POLL_LIMIT
from kernels.context import current_device

_log = logging.getLogger(__name__)

INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DTYPES = {"float32": tl.float32, "float16": tl.float16, "bfloat16": tl.bfloat16}


#: Of a thread. ptxas, left alone, spills some kernels to fit two programs on a processor.
MAX_REGISTERS = 255


def interpreted() -> bool:
    """Whether Triton runs programs one after another on the CPU (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


#: Plans that a benchmark wants in place of those that `make_plan` makes.
INSTEAD: dict[Problem, Plan] = {}


@cache
def device_properties(device: torch.device) -> DeviceProperties:
    """Of a GPU."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    name = torch.cuda.get_device_name(device)
    return DeviceProperties(
        name.removeprefix("NVIDIA "),
        properties["multiprocessor_count"],
        properties["max_shared_mem"],
        properties["max_num_regs"],
        properties["warpSize"],
    )


def plan_for(problem: Problem, device: torch.device) -> Plan:
    """The plan of a problem on a tensor's device; interpreted programs run stepped."""
    if problem in INSTEAD:
        return INSTEAD[problem]
    if device.type == "cpu":
        plan = make_plan(problem, DeviceProperties("interpreter", 1 << 30, 1 << 30))
        return Plan(plan.layout, False, plan.slices, plan.groups, plan.groups, ("interpreted",))
    plan = make_plan(problem, device_properties(device))
    if not plan.persistent:
        _log.debug("%s: %s", problem, " ".join(plan.reasons))
    return plan


def dtype_name(dtype: torch.dtype) -> DType:
    """'bfloat16' and the like."""
    return cast(DType, str(dtype).removeprefix("torch."))


def empty_until_written(past: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A buffer [T, B, ...] to be exchanged: EMPTY, and zero where `past` [T, B] says so."""
    flags = torch.full_like(past, EMPTY, dtype=INTEGERS[dtype]).masked_fill_(past, 0)  # [T, B]
    wide = flags.view(*flags.shape, *(1,) * (len(shape) - 2)).expand(shape)
    return wide.contiguous().view(dtype)


def never_empty(values: Tensor) -> Tensor:
    """`values` with every NaN that looks EMPTY made an ordinary one."""
    bits = values.contiguous().view(INTEGERS[values.dtype])
    nan = torch.iinfo(bits.dtype).max
    return torch.where(bits == EMPTY, nan, bits).view(values.dtype)


def run(
    kernel: Any,
    plan: Plan,
    tensors: tuple[Tensor | None, ...],
    batch: int,
    steps: int,  # T
    directions: int,
    **constants: Any,
) -> None:
    """All launches of one recurrence.

    Raises:
        RuntimeError: in an earlier launch on this device a program waited in vain.
    """
    layout = plan.layout
    device = next(t.device for t in tensors if t is not None)
    watch = _watch(device)
    watch.check()
    constants |= {
        "N": directions,
        "BLOCK_B": layout.block_b,
        "BLOCK_H": layout.block_h,
        "BLOCK_K": layout.block_k,
        "AHEAD": layout.ahead,
        "KEEP": plan.persistent,
        "POLL": plan.persistent and plan.waits,
        "num_warps": layout.num_warps,
        "num_stages": 1,
    }
    if not torch.version.hip:
        constants["maxnreg"] = MAX_REGISTERS
    if plan.persistent:
        constants["launch_cooperative_grid"] = not interpreted()
        spans = [(0, steps)]
    else:
        stepwise = [(step, step + 1) for step in range(steps)]
        spans = stepwise[::-1] if "RAW" in constants else stepwise
    with current_device(device):
        for group in range(0, plan.groups, plan.groups_per_launch):
            groups = min(plan.groups_per_launch, plan.groups - group)
            for first, last in spans:
                kernel[(plan.slices * groups, directions)](
                    *tensors,
                    _watch(device).lost,
                    batch,
                    group,
                    first,
                    last,
                    POLL_LIMIT,
                    **constants,
                )


class _Watch:
    """Whether a program of this device has ever given up waiting, told without a wait for it.

    The flag lies in the host's memory, where kernels write through its pinned page: on the device
    it would come from the pool of whatever is called first, a CUDA graph's perhaps.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):  # for later calls outside of it, whatever the first is in
            pin = device.type == "cuda"
            self.lost = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=pin)

    def check(self) -> None:
        """Raise if a launch that has ended by now has set it."""
        if self.lost.item():
            self.lost.zero_()
            raise RuntimeError(
                "a program of an earlier recurrent launch waited in vain for h[t] of another, and "
                "its results hold NaN: not all programs were resident. Use "
                "backend='torch', and please report the device and the shape"
            )


def check_waits(device: torch.device) -> None:
    """Wait for a device, and see whether all programs of its launches got what they needed.

    Raises:
        RuntimeError: one has waited in vain.
    """
    torch.cuda.synchronize(device)
    _watch(device).check()


@cache
def _watch(device: torch.device) -> _Watch:
    return _Watch(device)
