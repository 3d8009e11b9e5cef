"""Train the recurrent language model that ranks the search's hypotheses (asr/rescoring.py).

    python scripts/train_rescorer.py OUT --text FILE TIMES --text FILE TIMES --held-out FILE...

Each --text is read TIMES an epoch. Sentences are cut into pieces of 20 to 40 words, and every
fourth loses some of its first words: recordings are cut where speakers pause. The held-out texts'
perplexities, of their words and ends, are printed as it goes; OUT is written whenever they are,
and what lies there already is trained on. torchrun starts several processes, which share the work.

The packaged model's, in the folder of the speech data, with the manifests in `data`:

    torchrun --standalone --nproc-per-node 2 scripts/train_rescorer.py rescorer --precision bf16 \\
        --text text/books.txt.xz 1 --text ljspeech/sentences.csv 2 \\
        --exclude ljspeech/utterances.tsv \\
        --text data/speechocean762_train.jsonl.gz 29 \\
        --text data/librispeech-mini_train.jsonl.gz 14 \\
        --text data/fsdd_train.jsonl.gz 6 \\
        --held-out data/speechocean762_dev.jsonl.gz data/librispeech-mini_dev.jsonl.gz
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from make_language_model import read_sentences
from numpy.typing import NDArray
from torch import nn

from asr.config import TrainConfig
from asr.device import computing_in
from asr.errors import AsrError, DataError
from asr.optimizer import build_optimizer, learning_rate
from asr.processes import Processes, joined
from asr.rescoring import RESCORER_FILES, SubwordModel, has_rescorer, load_rescorer, save_rescorer

SHORTEST, LONGEST = 20, 40  # words of a piece, unless its sentence ends
LATE = 0.25  # share of the sentences that begin later
CHUNK = 40_000  # sentences that are sorted by length at once
SAMPLE = 150_000  # sentences that the subwords are trained on
GRADIENT_CLIP = 1.0
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Text:
    """Sentences as subwords, in one array."""

    units: Ids
    words: Ids  # where each word begins in `units`, and the end
    sentences: Ids  # where each sentence begins in `words`, and the end

    def __len__(self) -> int:
        return len(self.sentences) - 1

    def pieces(self, sentence: int, rng: np.random.Generator) -> Iterator[Ids]:
        """A sentence, or pieces of it."""
        first, end = self.sentences[sentence : sentence + 2]
        if rng.random() < LATE:
            first = rng.integers(first, end)
        while first < end:
            last = min(end, first + rng.integers(SHORTEST, LONGEST + 1))
            yield self.units[self.words[first] : self.words[last]]
            first = last


def train_pieces(sentences: Sequence[str], size: int) -> bytes:
    """Subwords for these sentences, with marks for beginning and end.

    Raises:
        DataError: there is too little text for so many.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,  # a small text may not hold that many
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"cannot make {size} subwords of {len(sentences)} sentences: {error}"
        ) from None
    return model.getvalue()


def encode(sentences: Sequence[str], pieces: sentencepiece.SentencePieceProcessor) -> Text:
    """Sentences that are not empty, as subwords."""
    begins = [pieces.id_to_piece(unit).startswith("▁") for unit in range(pieces.vocab_size())]
    units, words, ends = [], [0], [0]
    for sentence in pieces.encode([sentence for sentence in sentences if sentence]):
        starts = [len(units) + place for place, unit in enumerate(sentence) if begins[unit]]
        units += sentence
        words += [*starts[1:], len(units)]
        ends.append(len(words) - 1)
    return Text(*(np.array(part, dtype=np.int32) for part in (units, words, ends)))


def batches(
    texts: Sequence[Text], times: Sequence[int], size: int, rng: np.random.Generator
) -> Iterator[tuple[float, list[Ids]]]:
    """An epoch: how much of it is done, and pieces of like length, padded at most `size` units."""
    order = np.concatenate(
        [
            np.tile([(number, sentence) for sentence in range(len(text))], (count, 1))
            for number, (text, count) in enumerate(zip(texts, times, strict=True))
        ]
    )
    rng.shuffle(order)
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        found = (piece for number, line in chunk for piece in texts[number].pieces(line, rng))
        full: list[list[Ids]] = [[]]
        for piece in sorted(found, key=len):
            if (len(full[-1]) + 1) * (len(piece) + 1) > size and full[-1]:
                full.append([])
            full[-1].append(piece)
        rng.shuffle(full)
        for done, batch in enumerate(full):
            yield (start + len(chunk) * done / len(full)) / len(order), batch


def plan(
    texts: Sequence[Text],
    times: Sequence[int],
    size: int,
    epochs: int,
    rng: np.random.Generator,
    processes: Processes,
) -> Iterator[tuple[float, list[Ids]]]:
    """This process' batch of each step, and how much of the training is done before it."""
    for epoch in range(epochs):
        step: list[list[Ids]] = []
        for done, batch in batches(texts, times, size, rng):
            step.append(batch)
            if len(step) == processes.size:
                yield (epoch + done) / epochs, *processes.ours(step)
                step = []


@torch.no_grad()
def perplexity(model: SubwordModel, text: Text, marks: tuple[int, int]) -> float:
    """exp of the mean -ln p of the words and ends."""
    nats = 0.0
    for sentence in range(len(text)):
        first, end = text.words[text.sentences[sentence : sentence + 2]]
        nats += float(model.surprise([text.units[first:end]], *marks).sum())
    return math.exp(nats / (len(text.words) - 1 + len(text)))


def train(
    model: SubwordModel,
    steps: Iterator[tuple[float, list[Ids]]],
    config: TrainConfig,
    marks: tuple[int, int],
    processes: Processes,
) -> Iterator[tuple[float, float]]:
    """Train on this process' batches; after each step its progress and its loss, nats a unit."""
    optimizer = build_optimizer(model, config.weight_decay)
    parameters = list(model.parameters())
    device = str(parameters[0].device)
    for step, (progress, mine) in enumerate(steps):
        rate = learning_rate(config, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with computing_in(config.precision, device):
            nats = model.surprise(mine, *marks).sum()
        units = sum(len(piece) + 1 for piece in mine)
        (nats / units).backward()
        processes.average([p.grad for p in parameters if p.grad is not None], units)
        nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        yield progress, float(nats.detach()) / units


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument(
        "--text", nargs=2, action="append", required=True, metavar=("FILE", "TIMES")
    )
    parser.add_argument(
        "--exclude", type=Path, nargs="*", default=[], help="sentences to leave out"
    )
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--units", type=int, default=2048, help="subwords")
    parser.add_argument("--embedding-size", type=int, default=192)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="falls to zero")
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--batch-units", type=int, default=3072, help="of a process, with padding")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report-minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    try:
        with joined(arguments.device) as (processes, device):
            run(arguments, processes, device)
    except (AsrError, OSError) as error:
        sys.exit(f"train_rescorer: {error}")


def run(arguments: argparse.Namespace, processes: Processes, device: str) -> None:
    """The command; `arguments` are its own."""
    for path, count in arguments.text:
        if not count.isdecimal():
            raise DataError(f"--text {path}: expected how often it is read, 1 or so, got {count!r}")
    times = [int(count) for _, count in arguments.text]
    excluded = {sentence for path in arguments.exclude for sentence in read_sentences(path)}
    sentences = [
        [sentence for sentence in read_sentences(Path(path)) if sentence not in excluded]
        for path, _ in arguments.text
    ]
    rng = np.random.default_rng(arguments.seed)
    if has_rescorer(arguments.out):
        proto = (arguments.out / RESCORER_FILES[1]).read_bytes()
        model = load_rescorer(arguments.out).model
    else:
        every = [sentence for sentence in chain(*sentences) if sentence]
        some = rng.permutation(len(every))[:SAMPLE]
        proto = train_pieces([every[place] for place in some], arguments.units)
        torch.manual_seed(arguments.seed)
        units = sentencepiece.SentencePieceProcessor(model_proto=proto).vocab_size()
        model = SubwordModel(units, arguments.embedding_size, arguments.hidden_size)
    model.to(device).train()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    marks = pieces.bos_id(), pieces.eos_id()
    texts = [encode(text, pieces) for text in sentences]
    held_out = {path: encode(list(read_sentences(path)), pieces) for path in arguments.held_out}
    read = zip([path for path, _ in arguments.text], texts, strict=True)
    for path, text in (*read, *held_out.items()):
        if not len(text):
            raise DataError(f"{path}: expected sentences, got none")

    def report(*also: str) -> None:
        save_rescorer(arguments.out, model, proto)
        known = (f"{path}: {perplexity(model, text, marks):.1f}" for path, text in held_out.items())
        print(*also, "perplexity", *known, flush=True)

    config = TrainConfig(
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup_steps,
        decay_from=0.0,
        precision=arguments.precision,
    )
    steps = plan(texts, times, arguments.batch_units, arguments.epochs, rng, processes)
    losses: list[float] = []
    reported = time.monotonic()
    for progress, loss in train(model, steps, config, marks, processes):
        losses.append(loss)
        if processes.is_first and time.monotonic() - reported > 60 * arguments.report_minutes:
            report(f"{progress:.1%} loss {sum(losses) / len(losses):.3f}")
            losses.clear()
            reported = time.monotonic()
    if processes.is_first:
        report("end")


if __name__ == "__main__":
    main()
