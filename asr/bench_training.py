"""Speed of a recipe's network on made-up speech: training steps and inference, with rivals.

Noise costs what speech does, and needs neither a corpus nor a disk: `asr train` shows the speed
with both.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import kernels
from asr.config import Config
from asr.data import Batch
from asr.device import computing_in
from asr.errors import AsrError
from asr.features import FilterBank
from asr.model import AcousticModel
from asr.noise_batches import MEAN_SECONDS, UNITS, noise, noise_batches
from asr.timing import Spread, seconds_of
from asr.update import Update

#: What a GPU kernel is part of, by what its name contains; the first that fits.
PARTS = {
    "recurrence": ("forward_kernel", "backward_kernel", "rnn", "lstm"),
    "CTC": ("prepare_kernel", "emit_kernel", "recur_kernel", "occupy_kernel", "gradient_kernel"),
    "convolutions": ("conv", "dgrad", "wgrad", "fprop"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
    "copies": ("memcpy", "memset"),
}


@dataclass(frozen=True)
class Work:
    """Of a GPU in training."""

    peak_megabytes: float  # that a step adds to weights and optimizer
    busy: float  # share of the time in which a kernel or a copy runs
    parts: dict[str, float]  # part -> share of their time; cuDNN's recurrence is partly "products"


@dataclass(frozen=True)
class Speeds:
    """One way of running the network."""

    name: str
    training: Spread  # x real time
    inference: dict[int, Spread]  # utterances of a batch -> x real time, to log-probabilities
    work: Work | None = None


@dataclass(frozen=True)
class TrainingReport:
    """All measurements; the first is ours."""

    recipe: str
    machine: str
    steps: str
    speeds: list[Speeds]
    skipped: dict[str, str]  # way -> why

    def to_json(self) -> str:
        """Everything, with full precision."""
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """A line for each measurement."""
        lines = [f"recipe   {self.recipe}", f"machine  {self.machine}", f"steps    {self.steps}"]
        for way in self.speeds:
            lines.append(f"{way.name}: training {way.training} x real time")
            lines += [
                f"  inference, batch {size}: {speed} x real time"
                for size, speed in way.inference.items()
            ]
            if way.work:
                parts = ", ".join(f"{name} {share:.0%}" for name, share in way.work.parts.items())
                lines.append(
                    f"  training: {way.work.peak_megabytes:.0f} MB, "
                    f"GPU busy {way.work.busy:.0%}, of which {parts}"
                )
        lines += [f"{name}: not timed: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


class OnHost:
    """Lengths on the host, fetched once for all layers of a network."""

    def __init__(self) -> None:
        self._asked: Tensor | None = None
        self._found = torch.empty(0)

    def __call__(self, lengths: Tensor) -> Tensor:
        """The same on the CPU."""
        if lengths is not self._asked:
            self._asked, self._found = lengths, lengths.cpu()
        return self._found


class Packed(nn.Module):
    """torch.nn.LSTM over a PackedSequence: what most people train with."""

    def __init__(self, lstm: nn.LSTM, on_host: "OnHost") -> None:
        super().__init__()
        self.lstm = lstm
        self.on_host = on_host

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        """[B, T, D], [B] -> [B, T, 2 H]."""
        host = self.on_host(lengths)
        packed = pack_padded_sequence(x, host, batch_first=True, enforce_sorted=False)
        y, _ = self.lstm(packed)
        return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], None


class Way:
    """A network with its optimizer."""

    def __init__(self, network: AcousticModel, config: Config, targets: list[list[int]]) -> None:
        self.network = network
        self.device = network.output.weight.device
        self.config = config
        self.bank = FilterBank(config.features).to(self.device)
        self.update = Update(network, self.bank, config, targets)
        self.step = config.train.flat_start_steps  # behind those of the flat start

    def train(self, batches: Sequence[Batch]) -> None:
        """A step each, whose result the host waits for, as in training."""
        self.network.train()
        self.bank.train()
        for batch in batches:
            if not self.update(batch, self.step, 1e-6).taken:
                raise AsrError(f"{self.config.name}: loss or gradient of noise is not finite")
            self.step += 1

    @torch.inference_mode()
    def infer(self, batch: Batch) -> None:
        """Log-probabilities, on the device."""
        self.network.eval()
        self.bank.eval()
        waveforms = batch.waveforms.to(self.device, non_blocking=True)
        features, frames = self.bank(waveforms, batch.lengths)
        with computing_in(self.config.train.precision, self.device):
            self.network(features, frames.to(self.device, non_blocking=True))


def networks(config: Config, units: int, device: str) -> dict[str, Callable[[], AcousticModel]]:
    """Ours; the same by cuDNN through ATen, and by torch.nn.LSTM, where these have its cells."""
    settings = config.model

    def ours() -> AcousticModel:
        torch.manual_seed(0)
        return AcousticModel(config, units).to(device)

    def aten() -> AcousticModel:
        network = ours()
        for layer in network.layers:
            layer.recurrent.backend = "torch"  # type: ignore[union-attr]
        return network

    def packed() -> AcousticModel:
        network, on_host = ours(), OnHost()
        for layer in network.layers:
            layer.recurrent = Packed(_torch_lstm(layer.recurrent), on_host)  # type: ignore[arg-type]
        return network

    found = {"kernels": ours}
    if not (settings.peephole or settings.recurrent_dropout or settings.recurrent == "cifg"):
        if device != "cpu":  # where ours are ATen's anyway
            found["kernels, backend torch (cuDNN)"] = aten
        if settings.recurrent == "lstm":
            found["torch.nn.LSTM, packed"] = packed
    return found


def _torch_lstm(ours: kernels.LSTM) -> nn.LSTM:
    lstm = nn.LSTM(
        ours.input_size, ours.hidden_size, batch_first=True, bidirectional=ours.bidirectional
    )
    lstm.load_state_dict(ours.state_dict())
    return lstm.to(next(ours.parameters()).device)


def bench_training(
    config: Config,
    device: str = "cpu",
    *,
    steps: int = 10,
    repeats: int = 3,
    inference: Sequence[int] | None = None,
) -> TrainingReport:
    """Measure a recipe's network on `device`, all ways in turns.

    Args:
        config: the recipe: network, size of batches, loss, precision, masks.
        device: where.
        steps: batches of a measurement, at least.
        repeats: measurements, after one that is not counted.
        inference: utterances of a batch, of 12.3 s each; 1, 32 and 256, on a CPU 1 and 8.

    Raises:
        AsrError: a batch takes more memory than there is, or the network does not run here.
    """
    on_gpu = device != "cpu"
    inference = inference or ((1, 32, 256) if on_gpu else (1, 8))
    units = UNITS.get(config.units.kind, config.units.vocab_size)
    batches = noise_batches(config, units, steps, pin=on_gpu)
    heard = {n: noise(config, units, [MEAN_SECONDS] * n, pin=on_gpu) for n in inference}
    seconds = sum(float(batch.lengths.sum()) for batch in batches) / config.features.sample_rate
    targets = [batches[0].targets.tolist()]  # MMI's trigram is to have some
    ways: dict[str, Way] = {}
    skipped: dict[str, str] = {}
    for name, make in networks(config, units, device).items():
        try:
            way = Way(make(), config, targets)
            _round(way, batches, heard)  # compiles, and fills the caches of the libraries
        except Exception as error:  # of a driver, the card's memory: they share no class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if not ways:  # ours
                raise AsrError(f"{config.name}: its training does not run here: {reason}") from None
            skipped[name] = reason
        else:
            ways[name] = way
    rounds = [
        {name: _round(way, batches, heard) for name, way in ways.items()} for _ in range(repeats)
    ]
    speeds = []
    for name, way in ways.items():
        training = [seconds / found[name][0] for found in rounds]
        inferring = {
            n: Spread.of([n * MEAN_SECONDS / found[name][1][n] for found in rounds])
            for n in inference
        }
        work = _work(way, batches) if on_gpu else None
        speeds.append(Speeds(name, Spread.of(training), inferring, work))
    utterances = sum(len(batch.ids) for batch in batches)
    return TrainingReport(
        f"{config.name}, {config.train.precision}"
        + (", without its teachers" if config.train.distill else ""),
        torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads",
        f"{len(batches)} of {utterances / len(batches):.0f} utterances, "
        f"{seconds / len(batches):.0f} s of noise; {repeats} times",
        speeds,
        skipped,
    )


def _round(
    way: Way, batches: Sequence[Batch], heard: dict[int, Batch]
) -> tuple[float, dict[int, float]]:
    """Seconds of all training steps, and of inference, by the size of the batch."""
    training = seconds_of(partial(way.train, batches), way.device)
    return training, {
        n: seconds_of(partial(way.infer, batch), way.device) for n, batch in heard.items()
    }


def _work(way: Way, batches: Sequence[Batch]) -> Work | None:
    """What the GPU does in a pass over the batches, one more; None if its profiler does not say."""
    torch.cuda.reset_peak_memory_stats(way.device)
    before = torch.cuda.memory_allocated(way.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = seconds_of(partial(way.train, batches), way.device)
    spent: dict[str, float] = {}
    spans = []
    for event in profile.events() or ():
        if event.device_type.name == "CUDA":
            part = part_of(event.name)
            spent[part] = spent.get(part, 0.0) + event.time_range.elapsed_us()
            spans.append((event.time_range.start, event.time_range.end))
    total = sum(spent.values())
    if not total:
        return None
    return Work(
        (torch.cuda.max_memory_allocated(way.device) - before) / 1e6,
        covered(spans) / 1e6 / seconds,
        {part: share / total for part, share in sorted(spent.items(), key=lambda x: -x[1])},
    )


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of these (start, end) lasts: streams overlap."""
    total, last = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def part_of(kernel: str) -> str:
    """What a GPU kernel of this name is part of."""
    name = kernel.lower()
    for part, marks in PARTS.items():
        if any(mark in name for mark in marks):
            return part
    return "the rest"
