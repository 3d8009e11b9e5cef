"""The command line. Commands import what they need when they run, so that help is instant."""

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asr.commands import Commands, complain
from asr.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from asr.transcribe import Recognizer


_SETTINGS: dict[str, Any] = {
    "cls": Commands,
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # rich costs half of the time that help takes
}
app = typer.Typer(**_SETTINGS)
prepare = typer.Typer(help="Turn a corpus into manifests.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"asr {version('blstm-asr')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Speech recognition: prepare data, train, evaluate, transcribe, align."""


class Format(StrEnum):
    """How transcripts are printed."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


class AlignFormat(StrEnum):
    """How alignments are printed."""

    json = "json"
    textgrid = "textgrid"


Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:1; by default a GPU where there is one.")
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(help="bf16: for GPUs, and CPUs with AMX or AVX512-BF16."),
]
Model = Annotated[
    Path | None, typer.Option("--model", help="Model directory; by default the packaged model.")
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="Most likely units: no beam, lexicon or language model.")
]
LanguageModel = Annotated[
    Path | None,
    typer.Option("--lm", help="ARPA file of words, in place of the model's language models."),
]
LmWeight = Annotated[float | None, typer.Option(help="Weight of the language model.")]
WordScore = Annotated[float | None, typer.Option(help="Added for each word of a hypothesis.")]
BeamSize = Annotated[int | None, typer.Option(min=1, help="Hypotheses kept after each frame.")]
MinConfidence = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Speech none of whose words is so likely right is noise."),
]
Manifest = Annotated[
    Path, typer.Argument(help="Manifest NAME.jsonl.gz, or TSV with path and transcript columns.")
]


@prepare.command("librispeech")
def prepare_librispeech(
    source: Annotated[Path, typer.Argument(help="Folder with train-clean-100, dev-clean, ...")],
    out: Annotated[Path, typer.Argument(help="Folder the manifests go to.")],
) -> None:
    """Manifests of LibriSpeech, one for each part that SOURCE holds."""
    from asr.prepare import prepare_librispeech

    typer.echo(prepare_librispeech(source, out))


@prepare.command("tsv")
def prepare_tsv(
    source: Annotated[
        Path, typer.Argument(help="TSV with path and transcript columns, or its folder.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder the manifests go to.")],
    name: Annotated[str, typer.Option(help="Manifests are called NAME_SPLIT.jsonl.gz.")],
    dev_speakers: Annotated[int, typer.Option(min=0, help="Speakers moved from train to dev.")] = 0,
    dev_every: Annotated[int, typer.Option(min=0, help="Instead: one in so many utterances.")] = 0,
) -> None:
    """Manifests of any corpus that a table describes, one for each split in it."""
    from asr.prepare import prepare_tsv

    typer.echo(prepare_tsv(source, out, name, dev_speakers, dev_every))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder with the manifests.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the model.")],
    device: Device = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Instead of the recipe's.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Model to start from; of other units, its encoder.")
    ] = None,
    teacher: Annotated[
        list[Path] | None, typer.Option(help="Model to learn from, with train.distill; repeatable.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that load audio: 2, or for a GPU all cores but one."),
    ] = None,
) -> None:
    """Train a model, or go on with its training.

    When OUT holds a checkpoint of the same recipe, whatever its epochs, training goes on from
    there. OUT/model is the model directory.
    """
    from asr.config import load_config
    from asr.train import train

    config = load_config(recipe)
    given = {"epochs": epochs, "seed": seed}
    changes = {name: value for name, value in given.items() if value is not None}
    train(
        config.model_copy(update={"train": config.train.model_copy(update=changes)}),
        data,
        out,
        device=device,
        max_steps=max_steps,
        init=init,
        workers=workers,
        teachers=teacher or (),
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model directory.")],
    data: Manifest,
    out: Annotated[Path | None, typer.Option(help="TSV of all utterances, worst first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = None,
    precision: Precision = "fp32",
    greedy: Greedy = False,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    beam_size: BeamSize = None,
    min_confidence: MinConfidence = None,
    lm: LanguageModel = None,
) -> None:
    """Measure error rates and speed.

    WER and CER of words; PER of a phoneme model, on its greedy path and on the words that a
    search found.
    """
    from asr.data import read_manifest
    from asr.evaluate import evaluate

    utterances = read_manifest(data)
    weights = (lm_weight, word_score, beam_size, min_confidence)
    recognizer = _recognizer(model, device, precision, greedy, *weights, lm)
    with _progress("evaluate", len(utterances)) as on_progress:
        result = evaluate(
            recognizer.packaged, utterances, recognizer.decoder, on_progress=on_progress
        )
    for reason in result.failures.values():
        complain(reason)
    try:
        typer.echo(json.dumps(result.to_dict(), indent=2) if as_json else result.summary())
    finally:  # also where nobody reads that
        if out is not None:
            result.write_rows(out)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recordings.")],
    model: Model = None,
    output: Annotated[
        Format, typer.Option("--format", help="json: an object a line; srt, vtt: subtitles.")
    ] = Format.text,
    device: Device = None,
    precision: Precision = "fp32",
    greedy: Greedy = False,
    lm_weight: LmWeight = None,
    word_score: WordScore = None,
    beam_size: BeamSize = None,
    min_confidence: MinConfidence = None,
    lm: LanguageModel = None,
    hotwords: Annotated[
        Path | None, typer.Option(help="File of words that are expected, such as names.")
    ] = None,
    hotword_score: Annotated[
        float | None,
        typer.Option(help="Added to the log10-probability of each hotword; 4 unless given."),
    ] = None,
) -> None:
    """Print what is said in recordings.

    WAV, FLAC, MP3, Ogg, m4a, mp4, webm and more; any rate, any length.
    """
    from asr.hotwords import HOTWORD_SCORE, read_hotwords

    if output in (Format.srt, Format.vtt) and len(files) > 1:
        raise ConfigError(
            f"--format {output}: expected one FILE, got {len(files)}; call it for each"
        )
    if hotwords is None and hotword_score is not None:
        raise ConfigError("--hotword-score: expected --hotwords FILE with it")
    score = HOTWORD_SCORE if hotword_score is None else hotword_score
    expected = dict.fromkeys(read_hotwords(hotwords) if hotwords else (), score)
    weights = (lm_weight, word_score, beam_size, min_confidence)
    recognizer = _recognizer(model, device, precision, greedy, *weights, lm, expected)
    failed = False
    for result in recognizer.transcribe_many(files):
        if isinstance(result, AudioError):
            complain(result)
            failed = True
        elif output is Format.json:
            typer.echo(_json(result.to_dict()))
        elif output is Format.text:
            typer.echo(result.text if len(files) == 1 else f"{result.file}: {result.text}")
        else:
            from asr.subtitles import to_srt, to_vtt

            typer.echo((to_srt if output is Format.srt else to_vtt)(result), nl=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def align(
    audio: Annotated[str, typer.Argument(help="Recording.")],
    text: Annotated[str, typer.Argument(help="What is said in it: words, or a file NAME.txt.")],
    model: Model = None,
    output: Annotated[
        AlignFormat, typer.Option("--format", help="textgrid: for Praat, ELAN and their like.")
    ] = AlignFormat.json,
    picture: Annotated[
        Path | None, typer.Option(help="Draw what the network heard, and the text's path, as PNG.")
    ] = None,
    device: Device = None,
    precision: Precision = "fp32",
) -> None:
    """Print when the words and phones of a known text are said."""
    from asr.align import align, read_text
    from asr.device import choose_device
    from asr.model_dir import load_model_dir
    from asr.picture import check_picture

    words = read_text(text)
    if picture is not None:
        check_picture(picture)
    packaged = load_model_dir(model, choose_device(device), precision)
    aligned = align(packaged, audio, words)
    try:
        if output is AlignFormat.json:
            typer.echo(_json(aligned.to_dict()))
        else:
            typer.echo(aligned.to_textgrid(), nl=False)
    finally:  # also where nobody reads that
        if picture is not None:
            from asr.picture import draw

            draw(aligned, packaged.tokenizer.units, picture)


@app.command("tune-lm")
def tune_lm(
    model: Annotated[Path, typer.Argument(help="Model directory; its config.toml is changed.")],
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="Manifests or TSVs of development sets.")
    ],
    device: Device = None,
    lm: LanguageModel = None,
) -> None:
    """Fit the beam search's weights, and the confidences, to development sets."""
    from asr.data import read_manifest
    from asr.device import choose_device
    from asr.model_dir import load_model_dir
    from asr.tune import save_weights, tune_lm

    utterances = [utterance for path in data for utterance in read_manifest(path)]
    packaged = load_model_dir(model, choose_device(device))
    with _progress("tune", None) as on_progress:
        tuning = tune_lm(packaged, utterances, language_model=lm, on_progress=on_progress)
    typer.echo(tuning.summary())
    save_weights(packaged, tuning.best)


@app.command()
def info(model: Model = None) -> None:
    """Show what a model directory holds."""
    from asr.model_dir import load_model_dir

    packaged = load_model_dir(model)
    config = packaged.config
    parameters = sum(p.numel() for p in packaged.model.parameters())
    direction = "bidirectional" if config.model.bidirectional else "one direction"
    size = sum(path.stat().st_size for path in packaged.directory.iterdir() if path.is_file())
    for name, value in {
        "model": f"{config.name} ({packaged.directory}, {size / 1e6:.1f} MB)",
        "units": f"{config.units.kind}, {len(packaged.tokenizer.units)} with the blank",
        "network": f"{config.model.num_layers} x {config.model.recurrent.upper()} of "
        f"{config.model.hidden_size}, {direction}, {parameters / 1e6:.2f}M parameters",
        "frames": f"{1 / packaged.seconds_per_frame:.3g} outputs a second",
        "decoding": config.decode.method,
    }.items():
        typer.echo(f"{name:10}{value}")
    card = packaged.directory / "README.md"
    if card.is_file():
        typer.echo("\n" + card.read_text(encoding="utf-8", errors="replace").strip())


@app.command()
def bench(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Recordings of speech.")
    ] = None,
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Device = None,
    precision: Precision = "fp32",
    long_seconds: Annotated[float, typer.Option(min=1, help="Of the long file.")] = 3600.0,
) -> None:
    """Measure speed, memory and start-up time."""
    from asr.bench import bench
    from asr.device import choose_device

    report = bench(model, files or (), choose_device(device), precision, long_seconds=long_seconds)
    typer.echo(report.to_json() if as_json else report.summary())


@app.command()
def bench_training(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    device: Device = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches of a measurement, at least.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how fast a recipe's network learns and hears, on noise, beside torch.nn.LSTM."""
    from asr.bench_training import bench_training
    from asr.config import load_config
    from asr.device import choose_device

    report = bench_training(load_config(recipe), choose_device(device), steps=steps)
    typer.echo(report.to_json() if as_json else report.summary())


def _recognizer(
    model: Path | None,
    device: str | None,
    precision: Precision,
    greedy: bool,
    lm_weight: float | None,
    word_score: float | None,
    beam_size: int | None,
    min_confidence: float | None,
    language_model: Path | None = None,
    hotwords: Mapping[str, float] = MappingProxyType({}),
) -> "Recognizer":
    """The model with what the flags say instead of its own settings."""
    from asr.loading import load_model

    return load_model(
        model,
        device,
        precision,
        method="greedy" if greedy else None,
        lm_weight=lm_weight,
        word_score=word_score,
        beam_size=beam_size,
        min_confidence=min_confidence,
        language_model=language_model,
        hotwords=hotwords,
    )


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on terminals only; yields what tells it how many are done."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _json(values: Mapping[str, Any]) -> str:
    """An object in a line; ASCII where the output may lack characters."""
    return json.dumps(values, ensure_ascii=sys.stdout.encoding != "utf-8")


def run() -> None:
    """Do what the arguments say."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text; what it then has instead is an escape of JSON's, too.
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="asr")
