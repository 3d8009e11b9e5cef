"""What a wait looks at: every element of a tile, also where two stand in one number."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.backends.triton.sync import EMPTY, missing, pairs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter has the CPU")

ROWS, WIDTH = 2, 8


@triton.jit
def look(handed, found, seen, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of int16 [ROWS, WIDTH], read in pairs: whether one is missing, and all of them."""
    rows = tl.arange(0, ROWS)[:, None]
    both = handed.to(tl.pointer_type(tl.int32), bitcast=True)
    tile = tl.load(both + rows * (WIDTH // 2) + tl.arange(0, WIDTH // 2)[None, :])
    tl.store(found, missing(tile, True))
    tl.store(seen + rows * WIDTH + tl.arange(0, WIDTH)[None, :], pairs(tile))


def looked(handed: torch.Tensor) -> tuple[int, torch.Tensor]:
    found, seen = torch.full((1,), 7, dtype=torch.int32), torch.zeros_like(handed)
    look[(1,)](handed, found, seen, ROWS, WIDTH)
    return int(found), seen


def test_every_one_of_a_pair_is_looked_at() -> None:
    full = torch.tensor([0, 1, -2, 0x7FFF, -0x8000, 0x00FF, 0x7F00, -256] * ROWS).short()
    found, seen = looked(full.view(ROWS, WIDTH))
    assert found == 0
    assert torch.equal(seen.flatten(), full)
    for place in range(full.numel()):
        handed = full.clone()
        handed[place] = EMPTY
        found, seen = looked(handed.view(ROWS, WIDTH))
        assert found == 1
        assert torch.equal(seen.flatten(), handed)
