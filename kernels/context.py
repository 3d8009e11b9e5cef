"""What is around a call: devices, and who else of torch is listening."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator: torch.compile leaves `function` out of its graphs.

    As torch.compiler.disable, which for its part imports torch._dynamo, in a second or more.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            disabled: Callable[Arguments, Result] = torch.compiler.disable(function)
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Within it `device`, if it is a GPU, is the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, where a GPU's work so far is not waited for."""
    # To a CPU it would not be there yet.
    return tensor.to(device, non_blocking=device.type == "cuda")


def in_forward_mode() -> bool:
    """Whether tangents are wanted, which a custom operator would take for zero without a word."""
    return torch.autograd.forward_ad._current_level >= 0


def transformed() -> bool:
    """Whether torch.func is at work, too, which refuses custom operators."""
    return in_forward_mode() or torch._C._are_functorch_transforms_active()


def keeps_gradients() -> bool:
    """Whether there may be a backward pass; a trace is checked and used in any grad mode."""
    return torch.is_grad_enabled() or torch._C._get_tracing_state() is not None


def observed(*tensors: Tensor | None) -> bool:
    """Whether somebody looks at operators: torch.compile, a trace, a mode, a tensor's own class.

    Where nobody does, an autograd.Function does what an operator does. The operator takes 0.35 ms
    longer, forward and backward together, and its first call imports torch._dynamo, in a second
    or more.

    Args:
        tensors: all that the operator would get; one on "meta" has no data to compute with, and
            one of torch.vmap or `is_grads_batched` stands for several.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    modes: int = torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack()
    if modes or torch._C._are_functorch_transforms_active():
        return True
    return any(
        type(tensor) not in (Tensor, Parameter)
        or tensor.is_meta
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
        for tensor in tensors
        if tensor is not None
    )
