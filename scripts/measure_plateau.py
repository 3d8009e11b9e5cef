"""Measure how many steps CTC needs to leave its blank plateau, alone and with what may help.

Objectives are terms joined by `+`, or `none`:

- `flat=N`: the flat start of `asr.flat_start` for N steps.
- `smooth=E`: label smoothing, (1 - E) CTC + E KL(uniform || p) summed over frames (after Kim et
  al., arXiv:1711.02212).
- `penalty=C`: paths are weighed with the blank's log-probability lowered by C.
- `prior=A`: paths are weighed with p / prior^A, the prior being a running mean of p over the frames
  (after Zeyer et al., arXiv:2105.14849, and Huang et al., arXiv:2406.02560).

Small network, no augmentation, one thread. Of the greedy output on a few training utterances, every
trial prints the step from which it holds a tenth of the units or more, the step from which its
error rate is 75 % or less (inf: none within the trial), and that rate at the end. The same seed
means the same initial weights and order of batches.
"""

import argparse
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import kernels
from asr.config import Config, parse_config
from asr.data import Entry, Loader, read_manifest
from asr.decode import greedy_decode
from asr.features import FilterBank
from asr.flat_start import flat_start_loss, loudness
from asr.metrics import error_rate
from asr.model import AcousticModel
from asr.optimizer import build_optimizer, learning_rate
from asr.select import select
from asr.tokenizer import build_tokenizer

EVERY = 10  # steps between two looks at the greedy output
LOOK = 24  # utterances that are looked at
PRIOR_DECAY = 0.95  # of the running mean, a step
Rows = list[tuple[Tensor, Tensor]]  # features [T, D] and target [L] of each utterance


@dataclass(frozen=True)
class Padded:
    """Features and targets of a batch, as the model and the losses take them."""

    features: Tensor  # [B, T, D]
    frames: Tensor  # [B]
    targets: Tensor  # [sum of target_lengths]
    target_lengths: Tensor  # [B]


def pad(rows: Rows) -> Padded:
    """Rows as one batch."""
    features, targets = zip(*rows, strict=True)
    return Padded(
        pad_sequence(list(features), batch_first=True),
        torch.tensor([len(row) for row in features]),
        torch.cat(targets),
        torch.tensor([len(target) for target in targets]),
    )


class Objective:
    """What a trial minimises, from its terms."""

    def __init__(self, terms: str, units: int) -> None:
        pairs = (term.partition("=") for term in terms.split("+") if term != "none")
        self.terms = {name: float(value) for name, _, value in pairs}
        if unknown := self.terms.keys() - {"flat", "smooth", "penalty", "prior"}:
            raise SystemExit(f"measure_plateau: unknown objective {unknown.pop()!r}")
        self.prior = torch.full((units,), 1 / units)

    def __call__(self, model: AcousticModel, batch: Padded, step: int) -> Tensor:
        """Sum over the batch at `step`."""
        hidden, lengths = model.encode(batch.features, batch.frames)
        labels = (batch.targets, lengths, batch.target_lengths)
        if step < self.terms.get("flat", 0):
            loud = loudness(batch.features, batch.frames, model.frames_per_output)
            return flat_start_loss(model.output, hidden, loud, *labels)
        log_probs = model.output(hidden).log_softmax(-1).transpose(0, 1)  # [T', B, V]
        valid = torch.arange(len(log_probs))[:, None] < lengths
        offset = self._offset(log_probs.detach()[valid])
        loss = (
            kernels.ctc_loss(log_probs, *labels, reduction="sum")
            if offset is None
            else weighed_loss(log_probs, offset, *labels)
        )
        share = self.terms.get("smooth", 0)
        divergence = -log_probs.mean(-1)[valid] - torch.tensor(log_probs.shape[-1]).log()
        return (1 - share) * loss + share * divergence.sum() if share else loss

    def _offset(self, log_probs: Tensor) -> Tensor | None:
        """[V], what log-probabilities [N, V] are lowered by where paths are weighed."""
        if penalty := self.terms.get("penalty"):
            return F.one_hot(torch.tensor(0), log_probs.shape[1]) * penalty
        if exponent := self.terms.get("prior"):
            mean = log_probs.exp().mean(0)
            self.prior = PRIOR_DECAY * self.prior + (1 - PRIOR_DECAY) * mean
            return exponent * self.prior.log()
        return None


def weighed_loss(
    log_probs: Tensor,  # [T', B, V]
    offset: Tensor,  # [V]
    targets: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
) -> Tensor:
    """A scalar whose gradient for the logits is p - occupancy.

    The occupancy of a symbol at a frame is that of all paths, weighed with exp(log_probs - offset),
    which is not normalised: a constant offset of normalised scores would be but another bias.
    """
    scores = (log_probs.detach() - offset).requires_grad_()
    loss = F.ctc_loss(scores, targets, lengths, target_lengths, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, scores)  # ATen's: exp(scores) - occupancy
    valid = (torch.arange(len(scores))[:, None] < lengths)[..., None]
    occupancy = torch.where(valid, scores.detach().exp() - gradient, 0)
    return -(occupancy * log_probs).sum()


def read_rows(config: Config, manifest: Path, seconds: float) -> tuple[Rows, int]:
    """Features and targets of so much randomly chosen speech, and V."""
    utterances = read_manifest(manifest)
    random.Random(0).shuffle(utterances)
    tokenizer = build_tokenizer(config.units, [u.text for u in utterances])
    filter_bank = FilterBank(config.features)
    model = AcousticModel(config, len(tokenizer.units))
    corpus = select(utterances, tokenizer, model, filter_bank, config)
    loader = Loader(corpus.utterances, corpus.targets, config.features.sample_rate, workers=1)
    rows: Rows = []
    heard = 0.0
    while heard < seconds and len(rows) < len(corpus.utterances):
        batch = loader.load([Entry(len(rows), 1.0)])
        heard += corpus.utterances[len(rows)].seconds
        features, _ = filter_bank(batch.waveforms, batch.lengths)
        rows.append((features[0], batch.targets))
    return rows, len(tokenizer.units)


def batches(rows: Rows, max_frames: int, seed: int) -> Iterator[Padded]:
    """Batches of like length, shuffled, without end."""
    plan: list[Rows] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if plan[-1] and len(row[0]) * (len(plan[-1]) + 1) > max_frames:
            plan.append([])
        plan[-1].append(row)
    rng = random.Random(seed)
    while True:
        rng.shuffle(plan)
        yield from map(pad, plan)


@torch.inference_mode()
def look(model: AcousticModel, batch: Padded) -> tuple[float, float]:
    """Units in the greedy output as a share of those there are, and error rate."""
    spans = greedy_decode(*model.eval()(batch.features, batch.frames))
    hypotheses = [[str(unit) for unit, *_ in row] for row in spans]
    targets = batch.targets.split(batch.target_lengths.tolist())
    references = [[str(unit) for unit in target.tolist()] for target in targets]
    share = sum(map(len, hypotheses)) / len(batch.targets)
    return share, error_rate(references, hypotheses).rate


def trial(
    config: Config, rows: Rows, units: int, terms: str, seed: int, steps: int
) -> tuple[float, float, float]:
    """Steps to a tenth of the units, to an error rate of 75 %, and that rate in % at the end."""
    torch.manual_seed(seed)
    model = AcousticModel(config, units)
    frames = torch.cat([features for features, _ in rows])
    model.cmvn_mean.copy_(frames.mean(0))
    model.cmvn_istd.copy_(frames.var(0).clamp(min=1e-4).rsqrt())
    optimizer = build_optimizer(model, config.train.weight_decay)
    objective = Objective(terms, units)
    stream = batches(rows, config.train.max_frames, seed)
    spoke = learnt = float("inf")
    rate = 1.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.train, step, 0.0)
        batch = next(stream)
        loss = objective(model.train(), batch, step)
        optimizer.zero_grad()
        (loss / len(batch.targets)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.gradient_clip)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            share, rate = look(model, pad(rows[:LOOK]))
            spoke = min(spoke, step + 1) if share >= 0.1 else float("inf")
            learnt = min(learnt, step + 1) if rate <= 0.75 else float("inf")
    return spoke, learnt, 100 * rate


def summary(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} - {max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("objectives", nargs="+")
    parser.add_argument("--unit", default="phoneme", choices=["phoneme", "character"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=1200, help="of speech to train on")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = {
        "name": "plateau",
        "data": {"max_seconds": 8.0},
        "features": {"num_mel_bins": 40},
        "units": {"kind": arguments.unit},
        "model": {
            "conv_channels": 8,
            "num_layers": arguments.layers,
            "hidden_size": arguments.hidden,
            "dropout": 0.1,
        },
        "train": {"max_frames": 1600, "learning_rate": 2e-3, "warmup_steps": 50},
    }
    config = parse_config(values, "measure_plateau")
    rows, units = read_rows(config, arguments.manifest, arguments.seconds)
    print(f"{len(rows)} utterances, {units} units", flush=True)
    results: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(1, arguments.seeds + 1):
        for terms in arguments.objectives:
            result = trial(config, rows, units, terms, seed, arguments.steps)
            results.setdefault(terms, []).append(result)
            print(f"{terms}, seed {seed}: {result}", flush=True)
    print("\n| objective | a tenth of the units | 75 % errors | % at the end |\n|---|---|---|---|")
    for terms, trials in results.items():
        columns = [summary(list(column)) for column in zip(*trials, strict=True)]
        print(f"| {terms} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
