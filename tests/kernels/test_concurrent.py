"""The concurrent interpreter runs programs that wait for each other, and sees those that do not."""

import pytest
import torch
import triton
import triton.language as tl
from concurrent_interpreter import DeadlockError, ProgramError, run_concurrently

PROGRAMS, GROUPS, SLICE, STEPS = 4, 2, 2, 6
EMPTY = -1


@triton.jit
def gather_kernel(
    y,  # [GROUPS, STEPS + 1, H] int32, EMPTY but for the first row
    needed,  # [H] int32: 1 for the elements of a row to wait for
    STEPS,
    SLICE: tl.constexpr,
    BLOCK: tl.constexpr,  # H
    MUTE: tl.constexpr,  # the program that stores nothing
):
    """Each element of a row is 3 * its place + the sum of the row before, programs own slices."""
    place = tl.arange(0, BLOCK)
    mine = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    wanted = tl.load(needed + place) != 0
    row = y + tl.program_id(1) * (STEPS + 1) * BLOCK
    for _ in range(STEPS):
        before = tl.load(row + place, volatile=True)
        polls = 0
        while (tl.max((before == -1) & wanted, axis=0) != 0) & (polls < 1000000):
            before = tl.load(row + place, volatile=True)
            polls += 1
        row += BLOCK
        if tl.program_id(0) != MUTE:
            tl.store(row + mine, 3 * mine + tl.sum(before, axis=0) % 1000)


@triton.jit
def count_kernel(total, ids):
    tl.atomic_add(total, tl.num_programs(0) * 10 + tl.num_programs(1))
    tl.store(ids + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.program_id(1))


@triton.jit
def failing_kernel(x):
    tl.static_assert(tl.program_id(0) != 1, "planted")
    tl.store(x, 1)


def gather(
    wait_every: int = 1,
    mute: int = -1,
    delays: int | None = None,
    timeout: float = 30.0,
) -> torch.Tensor:
    y = torch.full((GROUPS, STEPS + 1, PROGRAMS * SLICE), EMPTY, dtype=torch.int32)
    y[:, 0] = torch.tensor([[1], [2]])
    needed = ((torch.arange(PROGRAMS * SLICE) + 1) % wait_every == 0).int()
    grid = (PROGRAMS, GROUPS)

    def launch() -> None:
        gather_kernel[grid](y, needed, STEPS, SLICE=SLICE, BLOCK=PROGRAMS * SLICE, MUTE=mute)

    run_concurrently(launch, delays=delays, timeout=timeout)
    return y


def expected() -> torch.Tensor:
    rows = [torch.tensor([[1], [2]]).expand(GROUPS, PROGRAMS * SLICE)]
    for _ in range(STEPS):
        rows.append(3 * torch.arange(PROGRAMS * SLICE) + rows[-1].sum(1, keepdim=True) % 1000)
    return torch.stack(rows, dim=1).int()


@pytest.mark.parametrize("delays", [None, 0, 1])
def test_programs_that_wait_for_each_other(delays: int | None) -> None:
    assert torch.equal(gather(delays=delays), expected())


@pytest.mark.parametrize("delays", [None, 0, 1])
def test_a_missing_wait_is_seen(delays: int | None) -> None:
    assert not torch.equal(gather(wait_every=PROGRAMS * SLICE + 1, delays=delays), expected())


def test_delays_tear_stores_so_that_one_flag_a_slice_is_not_enough() -> None:
    results = [gather(wait_every=SLICE, delays=seed) for seed in range(2)]
    assert not all(torch.equal(result, expected()) for result in results)


def test_a_deadlock_is_an_error_that_names_who_hung() -> None:
    with pytest.raises(DeadlockError, match=r"after 2 s still running of 8: \(0, 0, 0\)"):
        gather(mute=2, timeout=2.0)


def test_programs_know_their_place_and_a_callable_grid() -> None:
    total, ids = torch.zeros(1, dtype=torch.int32), torch.full((2, 3), -1, dtype=torch.int32)
    run_concurrently(lambda: count_kernel[lambda _: (2, 3)](total, ids))
    assert total.item() == 2 * 3 * 23
    assert ids.tolist() == [[0, 1, 2]] * 2


def test_the_error_of_a_program_comes_through() -> None:
    with pytest.raises(ProgramError, match=r"(?s)program \(1, 0, 0\).*planted"):
        run_concurrently(lambda: failing_kernel[(2,)](torch.zeros(1)))
