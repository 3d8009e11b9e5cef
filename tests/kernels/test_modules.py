"""The modules as drop-ins: weights, input kinds, options, conversion."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import kernels
from kernels.context import current_device

CLASSES = ["LSTM", "GRU", "RNN"]
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, name)(4, 5, dtype=torch.float64, **options)
    ours = getattr(kernels, name)(4, 5, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("options", [STACK, {"bias": False}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_goes_both_ways(name: str, options: dict[str, Any]) -> None:
    if "proj_size" in options and name != "LSTM":
        with pytest.raises(ValueError, match="proj_size"):
            getattr(kernels, name)(4, 5, **options)
        return
    ours, theirs = _pair(name, **options)
    again = getattr(nn, name)(4, 5, dtype=torch.float64, **options)
    again.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    torch.testing.assert_close(again(x)[0], theirs(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_starts_from_the_weights_of_torch(name: str) -> None:
    torch.manual_seed(3)
    theirs = getattr(nn, name)(4, 5, **STACK)
    torch.manual_seed(3)
    ours = getattr(kernels, name)(4, 5, **STACK)
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_packed_sequence_keeps_its_order(name: str, enforce_sorted: bool) -> None:
    ours, theirs = _pair(name, **STACK)
    lengths = torch.tensor([6, 3, 1] if enforce_sorted else [3, 6, 1])
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    h = torch.randn(4, 3, 5, dtype=torch.float64)
    hx = (h, torch.randn_like(h)) if name == "LSTM" else h
    y, final = ours(packed, hx)
    expected, expected_final = theirs(packed, hx)
    assert isinstance(y, PackedSequence)
    torch.testing.assert_close(y.data, expected.data)
    torch.testing.assert_close(final, expected_final)
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        theirs_field = getattr(expected, field)
        assert getattr(y, field) is theirs_field or torch.equal(getattr(y, field), theirs_field)


@pytest.mark.parametrize("name", CLASSES)
def test_layouts_agree(name: str) -> None:
    ours, theirs = _pair(name, **STACK)
    sideways = getattr(kernels, name)(4, 5, batch_first=True, dtype=torch.float64, **STACK)
    sideways.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([2, 6, 5])
    y, final = ours(x, None, lengths)
    # a transposed view, and a view with holes, are as good as contiguous input
    sideways_y, sideways_final = sideways(x.transpose(0, 1), None, lengths)
    torch.testing.assert_close(sideways_y.transpose(0, 1), y)
    torch.testing.assert_close(sideways_final, final)
    holes = torch.zeros(6, 3, 8, dtype=torch.float64)
    holes[..., ::2] = x
    torch.testing.assert_close(ours(holes[..., ::2], None, lengths)[0], y)
    # one utterance without a batch
    alone, alone_final = ours(x[:, 0])
    expected, expected_final = theirs(x[:, 0])
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(alone_final, expected_final)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("name", CLASSES)
def test_empty_batch(name: str, backend: str) -> None:
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter has the CPU")
    module = getattr(kernels, name)(4, 5, backend=backend, **STACK)
    for lengths in (None, torch.zeros(0, dtype=torch.int64)):
        y, final = module(torch.randn(6, 0, 4), None, lengths)
        assert y.shape == (6, 0, 10)
        assert (final[0] if name == "LSTM" else final).shape == (4, 0, 5)


def test_lengths_that_are_all_full_are_no_lengths() -> None:
    ours, _ = _pair("LSTM", **STACK)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    full = ours(x, None, torch.full((3,), 6))
    torch.testing.assert_close(full, ours(x), rtol=0, atol=0)


def test_dropout_is_between_layers_and_in_training_only() -> None:
    ours = kernels.LSTM(4, 5, num_layers=2, dropout=1.0, dtype=torch.float64)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    y, _ = ours(x)
    assert torch.equal(y, ours(x * 2)[0])  # nothing reaches the second layer ...
    assert y.abs().max() > 0  # ... whose own output is not dropped
    with pytest.warns(UserWarning, match="dropout"):
        single = kernels.LSTM(4, 5, dropout=1.0, dtype=torch.float64)
    assert not torch.equal(single(x)[0], single(x * 2)[0])  # nor is the first layer's input
    ours.eval()
    theirs = nn.LSTM(4, 5, num_layers=2, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


def test_functions_are_the_modules() -> None:
    x, lengths = torch.randn(6, 3, 4), torch.tensor([2, 6, 5])
    for name in CLASSES:
        module = getattr(kernels, name)(4, 5, **STACK)
        function = getattr(kernels, name.lower())
        got = function(x, module.all_weights, lengths=lengths, bidirectional=True)
        torch.testing.assert_close(got, module(x, None, lengths), rtol=0, atol=0)


def test_convert_changes_the_class_and_nothing_else() -> None:
    class Changed(nn.LSTM):
        pass

    shared = nn.GRU(5, 5)
    model = nn.ModuleDict(
        {"a": nn.LSTM(4, 5, **STACK), "b": nn.Sequential(shared, shared), "c": Changed(4, 5)}
    )
    parameters = dict(model.named_parameters())
    x = torch.randn(6, 3, 4)
    before = model["a"](x)
    assert kernels.convert(model, backend="reference") is model
    assert type(model["a"]) is kernels.LSTM
    assert model["b"][0] is model["b"][1] is shared
    assert type(shared) is kernels.GRU
    assert type(model["c"]) is Changed
    assert all(value is parameters[key] for key, value in model.named_parameters())
    assert model["a"].backend == "reference"
    torch.testing.assert_close(model["a"](x), before)


def test_convert_takes_a_layer_itself() -> None:
    assert type(kernels.convert(nn.RNN(4, 5))) is kernels.RNN


def test_copies_and_saved_modules_work() -> None:
    module = kernels.GRU(4, 5, backend="reference", **STACK)
    x = torch.randn(6, 3, 4)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert other.backend == "reference"
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"cifg": True}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_an_empty_batch_has_gradients(name: str, options: dict[str, Any]) -> None:
    if "cifg" in options and name != "LSTM":
        return
    module = getattr(kernels, name)(4, 5, **STACK, **options)
    x = torch.zeros(6, 0, 4, dtype=options.get("dtype"), requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad is not None
    assert not any(p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("name", CLASSES)
def test_the_names_and_helpers_of_torch(name: str) -> None:
    ours, theirs = _pair(name, **STACK)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    h = torch.randn(4, 3, 5, dtype=torch.float64)
    hx = (h, h) if name == "LSTM" else h
    torch.testing.assert_close(ours(input=x, hx=hx), theirs(input=x, hx=hx))
    order = torch.tensor([2, 0, 1])
    for module in (ours, theirs):
        module.check_forward_args(x, hx, None)
    assert_close = torch.testing.assert_close
    assert_close(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    if name == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


def test_a_gpu_is_found_after_the_torch_backend() -> None:
    """Whose module is called torch, too, and took the place of torch's own."""
    kernels.LSTM(4, 5, backend="torch")(torch.randn(6, 3, 4))
    assert isinstance(current_device(torch.device("cuda", 0)), torch.cuda.device)


def test_repr_names_the_backend() -> None:
    assert repr(kernels.LSTM(4, 5)) == "LSTM(4, 5)"
    assert repr(kernels.LSTM(4, 5, backend="torch")) == "LSTM(4, 5, backend='torch')"


@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 2, 5])], ids=["full", "uneven"])
@pytest.mark.parametrize("name", CLASSES)
def test_without_data_there_are_shapes(name: str, lengths: torch.Tensor | None) -> None:
    module = getattr(kernels, name)(4, 5, device="meta", **STACK)
    y, final = module(torch.empty(6, 3, 4, device="meta"), None, lengths)
    assert (y.device.type, y.shape) == ("meta", (6, 3, 10))
    assert (final[0] if name == "LSTM" else final).shape == (4, 3, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_autocast_works_on_any_processor(name: str, dtype: torch.dtype) -> None:
    module = getattr(kernels, name)(4, 5, **STACK)
    x, lengths = torch.randn(6, 3, 4), torch.tensor([2, 6, 5])
    exact, _ = copy.deepcopy(module).double()(x.double(), None, lengths)
    with torch.autocast("cpu", dtype=dtype):
        y, _ = module(x.to(dtype), None, lengths)
        mixed, _ = module(x, None, lengths)
    y.float().sum().backward()
    assert y.dtype in (dtype, torch.float32)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    # |h| < 1, and every rounding of one of its 2 x 6 steps adds about an eps.
    for got in (y, mixed):
        assert (got.double() - exact).abs().max() < 12 * torch.finfo(dtype).eps
