"""Plans that compilers or cards were seen to have trouble with are not made."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.backends.triton.plan import (
    DEVICES,
    GATES,
    WIDTH,
    DType,
    Layout,
    Pass,
    Problem,
    make_plan,
    persistent_plans,
)
from kernels.cells import Cell


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(get_args(Pass)),
    st.sampled_from(get_args(Cell)),
    st.integers(1, 70),
    st.integers(1, 600),
    st.sampled_from(get_args(DType)),
    st.sampled_from(sorted(DEVICES)),
)
def test_no_word_is_waited_for_by_two_threads(
    pass_: Pass, cell: Cell, batch: int, hidden: int, dtype: DType, device: str
) -> None:
    """One would look whether it is there, and both would store what they saw of it."""
    problem = Problem(pass_, cell, batch, hidden, 2, dtype)
    for plan in (
        make_plan(problem, DEVICES[device]),
        *persistent_plans(problem, DEVICES[device]),
    ):
        layout = plan.layout
        parts = 4 if pass_ == "backward" and GATES[cell] > 1 else 1
        words = parts * layout.block_b * layout.block_k * WIDTH[dtype] // 4
        assert not plan.persistent or words >= layout.num_warps * DEVICES[device].warp


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_that_change_hands_have_room(dtype: DType) -> None:
    """Compiled for sm_90, this layout took 245,760 bytes of shared memory."""
    problem = Problem("backward", "lstm", 192, 392, 2, dtype)
    plans = persistent_plans(problem, DEVICES["h200"])
    assert plans
    assert Layout(32, 64, 32, 4, 8) not in [plan.layout for plan in plans]
