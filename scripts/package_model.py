"""Put a trained phoneme model, a lexicon and language models together as the packaged model.

    python scripts/package_model.py exp/NAME/model --lexicon lexicon.txt \\
        --language-model lm.arpa.gz --rescorer rescorer --card card.md
    asr tune-lm asr/models/english data/speechocean762_dev.jsonl.gz \\
        data/librispeech-mini_dev.jsonl.gz
"""

import argparse
import sys
import tempfile
from pathlib import Path

from asr.description import PACKAGED_MODEL
from asr.errors import AsrError, DataError
from asr.lexicon import Lexicon
from asr.model_dir import load_model_dir, save_model_dir
from asr.rescoring import RESCORER_FILES, load_rescorer
from asr.tokenizer import PhonemeTokenizer

LARGEST = 13_000_000  # bytes of a file in the repository


def package(
    model: Path,
    lexicon: Path,
    language_model: Path,
    card: str,
    out: Path,
    rescorer: Path | None = None,
) -> None:
    """Write `out`, a model directory that decodes by beam search, in the place of what was there.

    Raises:
        ModelError: `model` or `rescorer` cannot be read.
        DataError: `out` is a folder of something else, the lexicon's phones are not the model's
            units, the language model is not gzipped, or a file is too large.
    """
    if out.exists() and not (out / "model.safetensors").is_file():
        raise DataError(f"{out}: expected a model directory or nothing, which would be replaced")
    with language_model.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            raise DataError(f"{language_model}: expected a gzipped ARPA file; gzip it")
    trained = load_model_dir(model)
    tokenizer = PhonemeTokenizer(Lexicon.read(lexicon))
    if tokenizer.units != trained.tokenizer.units:
        raise DataError(f"{lexicon}: its units are not those of {model}")
    decode = trained.config.decode.model_copy(update={"method": "beam"})
    config = trained.config.model_copy(update={"decode": decode})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}") as folder:
        made = Path(folder) / "made"
        extra = [language_model]
        if rescorer is not None:
            load_rescorer(rescorer)  # or it says what is wrong with it
            extra += [rescorer / name for name in RESCORER_FILES]
        save_model_dir(made, config, trained.model, tokenizer, card, extra)
        (made / language_model.name).replace(made / "lm.arpa.gz")
        for path in made.iterdir():
            if path.stat().st_size > LARGEST:
                size = path.stat().st_size
                raise DataError(f"{path.name}: {size} bytes are more than {LARGEST}")
        if out.exists():
            out.rename(Path(folder) / "replaced")
        made.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory of the training")
    parser.add_argument("--lexicon", type=Path, required=True)
    parser.add_argument("--language-model", type=Path, required=True, help="ARPA, gzipped")
    parser.add_argument("--rescorer", type=Path, help="folder made by train_rescorer.py")
    parser.add_argument("--card", type=Path, required=True, help="README.md of the model")
    parser.add_argument("--out", type=Path, default=PACKAGED_MODEL)
    arguments = parser.parse_args()
    try:
        card = arguments.card.read_text(encoding="utf-8")
        package(
            arguments.model,
            arguments.lexicon,
            arguments.language_model,
            card,
            arguments.out,
            arguments.rescorer,
        )
    except (AsrError, OSError) as error:
        sys.exit(f"package_model: {error}")


if __name__ == "__main__":
    main()
