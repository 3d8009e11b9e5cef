"""Which backend runs what."""

import pytest
import torch

import kernels
from kernels import choose_backend
from kernels.backends import available_backends, load_backend

BOTH = ("torch", "reference")


@pytest.mark.parametrize(
    ("requested", "device", "available", "chosen"),
    [
        (None, "cpu", BOTH, "torch"),
        (None, "cuda", BOTH, "torch"),
        (None, "cuda", ("triton", *BOTH), "triton"),
        (None, "cpu", ("triton", *BOTH), "torch"),
        ("torch", "cuda", ("triton", *BOTH), "torch"),
        ("reference", "cpu", BOTH, "reference"),
    ],
)
def test_choice(requested: str | None, device: str, available: list[str], chosen: str) -> None:
    assert choose_backend(requested, device, available) == chosen


def test_triton_needs_a_gpu_or_its_interpreter_and_has_no_float64() -> None:
    there = ("triton", *BOTH)
    with pytest.raises(ValueError, match=r"on a GPU, got the CPU; use backend=None"):
        choose_backend("triton", "cpu", there)
    assert choose_backend("triton", "cpu", there, interpreted=True) == "triton"
    assert choose_backend(None, "cuda", there, torch.float64) == "torch"
    with pytest.raises(ValueError, match="no float64"):
        choose_backend("triton", "cuda", there, torch.float64)


def test_a_name_that_is_not_there_is_an_error_and_never_replaced() -> None:
    with pytest.raises(ValueError, match=r"'triton' is not part of .* use backend=None"):
        choose_backend("triton", "cuda", BOTH)
    with pytest.raises(ValueError, match=r"one of \['triton', 'torch', 'reference'\], got 'cudnn'"):
        choose_backend("cudnn", "cuda", BOTH)


def test_modules_and_convert_refuse_it_at_once() -> None:
    with pytest.raises(ValueError, match="got 'cudnn'"):
        kernels.LSTM(4, 5, backend="cudnn")
    model = torch.nn.LSTM(4, 5)
    with pytest.raises(ValueError, match="got 'cudnn'"):
        kernels.convert(model, backend="cudnn")
    assert type(model) is torch.nn.LSTM


def test_each_backend_that_is_there_loads() -> None:
    assert set(available_backends()) >= set(BOTH)
    for name in available_backends():
        assert callable(load_backend(name))
