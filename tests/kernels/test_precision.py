from collections.abc import Iterator

import pytest
import torch

from kernels.precision import float32_products


@pytest.fixture
def switch() -> Iterator[None]:
    everything = torch.backends.fp32_precision
    products = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.fp32_precision = everything
    torch.backends.cuda.matmul.fp32_precision = "none" if products == everything else products


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("asked", ["ieee", "tf32", None])
def test_a_precision_that_was_inherited_goes_on_to_be(asked: str | None) -> None:
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    with float32_products(asked):
        assert torch.backends.cuda.matmul.fp32_precision == (asked or "tf32")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("switch")
def test_a_precision_that_was_asked_for_comes_back() -> None:
    torch.backends.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with float32_products("ieee"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
