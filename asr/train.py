"""The trainer of every recipe: CTC, AdamW, a validation after every epoch, exact resumption.

A training killed at any moment goes on from its last checkpoint and, on a CPU, ends with the
bits it would have ended with: batches are planned from (seed, epoch), and dropout, masks and
noise are drawn from generators seeded by (seed, step, process) or (seed, epoch, utterance).
Another number of processes may go on with it, and then ends with other bits.
"""

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from asr.averaging import BestEpochs
from asr.card import model_card
from asr.checkpoint import (
    EpochScore,
    TrainingState,
    check_recipe,
    load_checkpoint,
    save_checkpoint,
)
from asr.config import Config, dump_config, other_network, other_units
from asr.data import Batch, Entry, Loader, Utterance, plan_batches, read_manifest
from asr.distillation import Teachers, load_teachers
from asr.errors import DataError, ModelError
from asr.features import FilterBank
from asr.files import reserved, write_text
from asr.interrupt import Interrupt
from asr.model import AcousticModel
from asr.model_dir import Packaged, load_model_dir, load_weights, save_model_dir
from asr.optimizer import learning_rate
from asr.processes import ALONE, Processes, joined
from asr.select import Corpus, select
from asr.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from asr.train_log import TrainingLog
from asr.update import Update
from asr.validate import validate

_CMVN_SECONDS = 3600.0  # of training speech that the normalisation is estimated on
_LOG_STEPS = 20


class Trainer:
    """One training in one folder.

    `out` comes to hold config.toml, tokenizer/, checkpoint.safetensors, epochs/, log.jsonl,
    excluded.tsv, loss.png, tensorboard/, and at the end model/, the model directory.
    """

    def __init__(
        self,
        config: Config,
        data: Path,
        out: Path,
        device: str = "cpu",
        init: Path | None = None,
        workers: int | None = None,
        processes: Processes = ALONE,
        teachers: Sequence[Path] = (),
    ) -> None:
        self.config = config
        self.settings = config.train
        self.out = out
        self.device = device
        self.processes = processes
        models = load_teachers(teachers, config, device)
        train_set = [u for name in config.data.train for u in _manifest(data, name)]
        valid_set = [u for name in config.data.valid for u in _manifest(data, name)]
        if not train_set or not valid_set:
            raise DataError("the recipe's [data] must name manifests for train and valid")
        resumed = self.checkpoint.exists()
        if resumed:
            check_recipe(self.checkpoint, config)
        start = None if init is None or resumed else _start(init, config)
        same_units = start is not None and start.config.units.kind == config.units.kind
        self.tokenizer = self._tokenizer(train_set, [*([start] if start else []), *models])
        torch.manual_seed(self.settings.seed)
        self.filter_bank = FilterBank(config.features).to(device)
        self.model = AcousticModel(config, len(self.tokenizer.units))
        speed = max(config.augment.speeds)
        self.train_set = self._select(train_set, speed)
        self.valid_set = self._select(valid_set, 1.0)
        seed = self.settings.seed
        self.workers = workers or processes.loading_threads(device)
        self.loader = Loader(
            self.train_set.utterances,
            self.train_set.targets,
            config.features.sample_rate,
            self.workers,
            config.augment,
            seed,
            pin=device != "cpu",
        )
        self.valid_loader = self._plain_loader(self.valid_set)
        if start is not None:
            weights = start.directory / "model.safetensors"
            load_weights(self.model, weights, output=same_units)
        self.model.to(device)
        targets = self.train_set.targets
        self.teachers = Teachers(models, self.model, self.tokenizer.units) if models else None
        self.update = Update(
            self.model, self.filter_bank, config, targets, processes, self.teachers
        )
        self.state = TrainingState()
        self.log = TrainingLog(out, self.metric, quiet=not processes.is_first)
        self.best = BestEpochs(
            out / "epochs", self.settings.average_best, quiet=not processes.is_first
        )
        self._waited = self._heard = self._since = 0.0
        checksum = self.teachers.checksum if self.teachers else 0
        if resumed:
            self.state = load_checkpoint(self.checkpoint, self.model, self.update.optimizer)
            if self.state.corpus not in (0, self.train_set.checksum):
                self.log.say("the training data is not what it was at the last checkpoint")
            if self.state.teachers != checksum:
                self.log.say("the teachers are not those of the last checkpoint")
        elif start is None and processes.is_first:
            self._estimate_cmvn()
        self.state.corpus, self.state.teachers = self.train_set.checksum, checksum
        processes.share(list(self.model.state_dict().values()))

    @property
    def checkpoint(self) -> Path:
        """The file that a training resumes from."""
        return self.out / "checkpoint.safetensors"

    @property
    def metric(self) -> str:
        """The error rate that picks the best epochs."""
        return "PER" if self.config.units.kind == "phoneme" else "WER"

    def _tokenizer(self, train_set: list[Utterance], models: Sequence[Packaged]) -> Tokenizer:
        """That of the first model with the recipe's kind of units, if any; else a new one."""
        folder = self.out / "tokenizer"
        if self.processes.is_first and not self.checkpoint.exists():
            units = self.config.units
            alike = [m.tokenizer for m in models if m.config.units.kind == units.kind]
            theirs = alike[0] if alike and not units.lexicon else None
            tokenizer = theirs or build_tokenizer(units, [u.text for u in train_set])
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(folder)
        self.processes.wait()
        return load_tokenizer(self.config.units, folder)

    def _select(self, utterances: list[Utterance], speed: float) -> Corpus:
        corpus = select(
            utterances, self.tokenizer, self.model, self.filter_bank, self.config, speed
        )
        if not corpus.utterances:
            example = corpus.excluded[0]
            raise DataError(f"no utterance can be used; the first, {example[0]}: {example[1]}")
        return corpus

    def _plain_loader(self, corpus: Corpus) -> Loader:
        """Without augmentation."""
        rate = self.config.features.sample_rate
        return Loader(corpus.utterances, corpus.targets, rate, self.workers)

    def _estimate_cmvn(self) -> None:
        """Mean and deviation of every feature over an even sample of the training set."""
        step = max(1, int(self.train_set.seconds / _CMVN_SECONDS))
        sums = torch.zeros(3, self.filter_bank.size_of_feature, dtype=torch.float64)
        plain = self._plain_loader(self.train_set)
        chosen = range(0, len(self.train_set.utterances), step)
        for batch in plain.batches([[Entry(index, 1.0)] for index in chosen]):
            features, _ = self.filter_bank(batch.waveforms.to(self.device), batch.lengths)
            frames = features[0].double().cpu()
            sums += torch.stack(
                [torch.ones_like(frames[0]) * len(frames), frames.sum(0), frames.square().sum(0)]
            )
        mean = sums[1] / sums[0]
        variance = sums[2] / sums[0] - mean.square()
        self.model.cmvn_mean.copy_(mean)
        self.model.cmvn_istd.copy_(variance.clamp(min=1e-4).rsqrt())

    def run(self, max_steps: int | None = None) -> Path:
        """Train to the end, or for `max_steps` more steps; returns the model directory.

        An interrupt ends the step and saves a checkpoint first, so that nothing is lost.

        Raises:
            KeyboardInterrupt: after that.
        """
        self._report_corpora()
        self.log.rewind(self.state.step, self.state.epoch)
        last = None if max_steps is None else self.state.step + max_steps
        with self.log:
            with Interrupt(self.log.say) as interrupt:
                while not self._is_over(last):
                    if self._epoch(last, interrupt):
                        self._save()  # whatever becomes of the validation
                        self._finish_epoch()
                    if self._agreed(interrupt):
                        self._save()
                        step = self.state.step
                        self.log.say(f"interrupted at step {step}; the same command resumes")
                        raise KeyboardInterrupt
                self._save()
            return self._write_model()

    def _agreed(self, interrupt: Interrupt) -> bool:
        """Whether any process is to stop: all learn it at the same step."""
        return any(self.processes.total(interrupt.asked))

    def _is_over(self, last: int | None) -> bool:
        if last is not None and self.state.step >= last:
            return True
        if self.state.epoch >= self.settings.epochs:
            return True
        scores = [score.error_rate for score in self.state.history]
        patience = self.settings.patience
        return (
            bool(patience)
            and len(scores) > patience
            and (min(scores[-patience:]) >= min(scores[:-patience]))
        )

    def _report_corpora(self) -> None:
        rows = [
            f"{split}\t{identity}\t{reason}\n"
            for split, corpus in (("train", self.train_set), ("valid", self.valid_set))
            for identity, reason in corpus.excluded
        ]
        if self.processes.is_first:
            write_text(self.out / "excluded.tsv", "split\tid\treason\n" + "".join(rows))
            write_text(self.out / "config.toml", dump_config(self.config))
        parameters = sum(p.numel() for p in self.model.parameters())
        self.log.say(
            f"{self.config.name}: {parameters / 1e6:.2f}M parameters, "
            f"{len(self.tokenizer.units)} units, {self.device}; "
            f"train {len(self.train_set.utterances)} utterances, "
            f"{self.train_set.seconds / 3600:.2f} h; "
            f"valid {len(self.valid_set.utterances)}, {self.valid_set.seconds / 3600:.2f} h; "
            f"excluded {len(rows)} (excluded.tsv)"
        )
        unknown = getattr(self.tokenizer, "out_of_vocabulary", {})
        if unknown:
            some = ", ".join(sorted(unknown)[:10])
            self.log.say(f"{len(unknown)} words are not in the lexicon and were spelled: {some}")
        wanted, found = self.config.units.vocab_size, len(self.tokenizer.units)
        if self.config.units.kind == "subword" and found < wanted:
            self.log.say(f"the transcripts give {found} units, fewer than vocab_size = {wanted}")
        if self.state.step:
            self.log.say(f"resuming at epoch {self.state.epoch}, step {self.state.step}")

    def _plan(self) -> list[list[Entry]]:
        shift = self.config.features.frame_shift / 1000
        return plan_batches(
            [utterance.seconds for utterance in self.train_set.utterances],
            self.config.augment.speeds,
            self.settings.max_frames * shift,
            self.settings.max_utterances,
            self.settings.seed,
            self.state.epoch,
        )

    def _epoch(self, last: int | None, interrupt: Interrupt) -> bool:
        """Go on with the current epoch; true when it is complete, false when stopped before."""
        state = self.state
        plan = self._plan()
        size = self.processes.size
        ours = self.processes.ours(plan[state.batch :])
        batches = self.loader.batches(ours, state.epoch)
        self.model.train()
        self.filter_bank.train()
        self._waited = self._heard = 0.0
        self._since = begun = time.monotonic()
        spent = state.epoch_seconds
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return True
            progress = (state.epoch + state.batch / len(plan)) / self.settings.epochs
            self._step(batch, learning_rate(self.settings, state.step, progress))
            state.batch = min(state.batch + size, len(plan))
            state.step += 1
            state.epoch_seconds = spent + time.monotonic() - begun
            self._heard += size * float(batch.lengths.sum()) / self.config.features.sample_rate
            self._show(len(plan), progress)
            if state.step % self.settings.checkpoint_steps == 0:
                self._save()
            stop = self._agreed(interrupt)
            if stop:
                self._save()  # before what may take longer than who asked will wait
            if stop or (last is not None and state.step >= last):
                batches.close()
                return state.batch == len(plan)

    def _step(self, batch: Batch, rate: float) -> None:
        """One update; one whose loss or gradient is not finite is skipped and counted."""
        outcome = self.update(batch, self.state.step, rate)
        if outcome.taken:
            self.state.epoch_loss += outcome.loss
            self.state.epoch_units += outcome.units
        else:
            self.state.skipped += 1
            reason = "loss or gradient is not finite"
            names = ", ".join(self.processes.chain(batch.ids))
            self.log.say(f"step {self.state.step + 1}: {reason}, skipped: {names}")
        if self.state.step % _LOG_STEPS == 0:
            self.log.record(
                step=self.state.step + 1,  # this one counted: `rewind` drops it where it is not
                loss=outcome.loss / outcome.units,
                learning_rate=rate,
                gradient_norm=outcome.gradient_norm,
                skipped=self.state.skipped,
                data_wait=self._waited / max(1e-9, time.monotonic() - self._since),
            )

    def _show(self, batches: int, progress: float) -> None:
        state = self.state
        elapsed = max(1e-9, time.monotonic() - self._since)
        mean = state.epoch_loss / max(1, state.epoch_units)
        per_epoch = state.epoch_seconds / max(1, state.batch) * batches
        remaining = per_epoch * self.settings.epochs * (1 - progress)
        self.log.step(
            state.epoch,
            state.batch,
            batches,
            f"loss {mean:.3f}  {self._heard / elapsed:.0f} x real time  "
            f"waiting for data {self._waited / elapsed:.1%}  {remaining / 60:.0f} min left",
        )

    def _finish_epoch(self) -> None:
        state = self.state
        loss, rate = validate(
            self.model, self.filter_bank, self.tokenizer, self.valid_loader, self.processes
        )
        score = EpochScore(
            state.epoch,
            state.step,
            state.epoch_loss / max(1, state.epoch_units),
            loss,
            rate,
            state.epoch_seconds,
        )
        state.history.append(score)
        self.log.say(
            f"epoch {score.epoch}: training loss {score.train_loss:.3f}, validation loss "
            f"{loss:.3f}, {self.metric} {rate:.2%}, {score.seconds:.0f} s"
        )
        self.log.record(
            step=state.step,
            epoch=state.epoch,
            train_loss=score.train_loss,
            valid_loss=loss,
            error_rate=rate,
        )
        self.log.plot(state.history)
        self.best.keep(self.model, state.history)
        state.epoch += 1
        state.batch = 0
        state.epoch_loss, state.epoch_units, state.epoch_seconds = 0.0, 0, 0.0
        self._save()
        self.best.drop_others(state.history)

    def _save(self) -> None:
        if self.processes.is_first:
            save_checkpoint(
                self.checkpoint, self.config, self.state, self.model, self.update.optimizer
            )

    def _write_model(self) -> Path:
        """Average the best epochs (the last weights if no epoch is complete) into out/model."""
        directory = self.out / "model"
        if not self.processes.is_first:
            return directory
        history = self.state.history
        best = self.best.kept(history)
        model = copy.deepcopy(self.model)  # training may go on from its own weights
        if best:
            model.load_state_dict(self.best.average(history))
        loss, rate = validate(model, self.filter_bank, self.tokenizer, self.valid_loader)
        weights = f"mean of epochs {sorted(best)}" if best else f"step {self.state.step}"
        self.log.say(f"{weights}: validation loss {loss:.3f}, {self.metric} {rate:.2%}")
        names = self.teachers.names if self.teachers else ()
        seconds = self.train_set.seconds
        card = model_card(self.config, seconds, self.metric, rate, weights, names)
        save_model_dir(directory, self.config, model, self.tokenizer, card)
        self.log.say(f"wrote {directory}")
        return directory


def _start(init: Path, config: Config) -> Packaged:
    """The model to begin with; the recipe must have its features and its layers."""
    start = load_model_dir(init)
    others = other_network(start.config, config)
    if not others and start.config.units.kind == config.units.kind:
        others = other_units(start.config, config)
    if others:
        raise ModelError(
            f"{init}: its {others}; take that into the recipe, or train without --init"
        )
    return start


def _manifest(data: Path, name: str) -> list[Utterance]:
    return read_manifest(data / f"{name}.jsonl.gz")


def train(
    config: Config,
    data: Path,
    out: Path,
    *,
    device: str | None = None,
    max_steps: int | None = None,
    init: Path | None = None,
    workers: int | None = None,
    teachers: Sequence[Path] = (),
) -> Path:
    """Train `config` on the manifests in `data`; resumes when `out` holds a checkpoint.

    Args:
        config: the recipe.
        data: folder of manifests, made by `asr prepare`.
        out: folder that comes to hold the training and, in `out/model`, the model directory.
        device: see `choose_device`.
        max_steps: stop after so many steps of this call.
        init: model directory to begin with: its weights and its units, but for a lexicon that the
            recipe names; of a model of another kind of units all but the output layer. A training
            that is resumed does not look at it.
        workers: threads that read and augment audio; None: see `Processes.loading_threads`.
        teachers: model directories for a recipe with `distill`, see asr/distillation.py, with its
            features, rate of frames and kind of units; the first one's units are taken as those of
            `init` would be. A training that is resumed needs them again.

    Raises:
        DataError: a manifest is missing or holds nothing that can be trained on.
        ModelError: the checkpoint, `init` or a teacher does not fit the recipe.
        ConfigError: there is no such device; `distill` without teachers, or teachers without it.
        AsrError: another training is at work in `out`.
    """
    with (
        joined(device) as (processes, device),
        reserved(out, "epochs", "model") if processes.is_first else nullcontext(),
    ):
        trainer = Trainer(config, data, out, device, init, workers, processes, teachers)
        return trainer.run(max_steps)
