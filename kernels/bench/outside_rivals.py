"""Rivals that are no dependencies: they take part where they are installed."""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from kernels.bench.job import Job
from kernels.bench.registry import Rival, entrant

#: ONNX's order of gates: their places in torch's.
ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def outside_rivals(job: Job, device: torch.device) -> list[Rival]:
    """FlashRNN on a GPU, ONNX Runtime on a CPU; with the reason where they cannot take part."""
    if device.type == "cuda":
        return [_where_installed("FlashRNN, bf16, not exact", ["flashrnn"], flash_rnn, job)]
    needs = ["onnx", "onnxruntime"]
    return [_where_installed("ONNX Runtime, fp32", needs, onnx_runtime, job)]


def _where_installed(
    name: str, packages: list[str], make: Callable[[str, Job], Rival], job: Job
) -> Rival:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        return Rival(name, {}, skipped=f"not installed: {', '.join(missing)}")
    return entrant(name, lambda name: make(name, job))


def flash_rnn(name: str, job: Job) -> Rival:
    """Poeppel 2024, its fused CUDA kernels: one direction, equal lengths, one layer.

    Run once for each direction, with the input's GEMM; flips are left out, as for baseline 3.

    Raises:
        ValueError: a stack, or an RNN, which it has not.
    """
    if job.shape.layers > 1 or job.name == "RNN":
        raise ValueError("only one layer of LSTM or GRU")
    run = importlib.import_module("flashrnn").flashrnn
    module, H = job.module(torch.bfloat16), job.shape.hidden

    def direction(x: Tensor, suffix: str) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = (
            getattr(module, f"{kind}_l0{suffix}")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        gates = torch.nn.functional.linear(x.transpose(0, 1), w_ih).unflatten(-1, (-1, 1, H))
        states, _ = run(
            gates,  # [B, T, G, 1, H]
            w_hh.view(-1, 1, H, H),
            (b_ih + b_hh).view(-1, 1, H),
            function=job.name.lower(),
            backend="cuda_fused",
            dtype="bfloat16",
        )
        h: Tensor = states[0]  # [B, T, 1, H]
        return h

    return job.rival(name, [module], lambda x: [direction(x, ""), direction(x, "_reverse")])


def onnx_runtime(name: str, job: Job) -> Rival:
    """Inference of the same stack, exact on unequal lengths, on as many threads as torch has."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        onnx_graph(job.theirs, job.name), options, providers=["CPUExecutionProvider"]
    )
    lengths = job.lengths.int().numpy()
    inputs = [{"x0": x.numpy(), "lengths": lengths} for x in job.inputs]
    turn = iter(range(2**62))

    def infer() -> object:
        return session.run(["y"], inputs[next(turn) % len(inputs)])

    return Rival(name, {"forward": infer})


def onnx_graph(module: nn.RNNBase, name: str) -> bytes:
    """A stack of both directions: x0 [T, B, D], lengths [B] int32 -> y [T, B, 2H]."""
    onnx: Any = importlib.import_module("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    H = module.hidden_size
    gates = torch.tensor(ONNX_GATES[name])
    more: dict[str, object] = {"linear_before_reset": 1} if name == "GRU" else {}
    if name == "RNN":
        more = {"activations": ["Tanh" if module.mode == "RNN_TANH" else "Relu"] * 2}

    def constant(label: str, values: Tensor) -> Any:
        return onnx.numpy_helper.from_array(values.detach().cpu().numpy(), label)

    def ordered(kind: str, layer: int) -> Tensor:
        both = [getattr(module, f"{kind}_l{layer}{end}") for end in ("", "_reverse")]
        rows = [weight.unflatten(0, (len(gates), H))[gates].flatten(0, 1) for weight in both]
        return torch.stack(rows)

    nodes, constants = [], [constant("shape", torch.tensor([0, 0, 2 * H]))]
    for n in range(module.num_layers):
        biases = torch.cat([ordered("bias_ih", n), ordered("bias_hh", n)], 1)
        constants += [
            constant(f"W{n}", ordered("weight_ih", n)),
            constant(f"R{n}", ordered("weight_hh", n)),
            constant(f"B{n}", biases),
        ]
        last = "y" if n == module.num_layers - 1 else f"x{n + 1}"
        taken = [f"x{n}", f"W{n}", f"R{n}", f"B{n}", "lengths"]
        options = {"hidden_size": H, "direction": "bidirectional", **more}
        nodes += [
            helper.make_node(name, taken, [f"apart{n}"], **options),  # [T, 2, B, H]
            helper.make_node("Transpose", [f"apart{n}"], [f"beside{n}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"beside{n}", "shape"], [last]),
        ]
    x = helper.make_tensor_value_info("x0", kinds.FLOAT, ["T", "B", module.input_size])
    lengths = helper.make_tensor_value_info("lengths", kinds.INT32, ["B"])
    y = helper.make_tensor_value_info("y", kinds.FLOAT, ["T", "B", 2 * H])
    graph = helper.make_graph(nodes, name, [x, lengths], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content
