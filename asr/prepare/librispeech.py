"""LibriSpeech as OpenSLR 12 distributes it (Panayotov et al. 2015)."""

from collections.abc import Iterator
from pathlib import Path

from asr.errors import DataError
from asr.prepare.manifests import Item, Rejected, Summary, write_manifests

SPLITS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)


def prepare_librispeech(source: Path, out: Path) -> Summary:
    """Prepare every official split that is there: `OUT/librispeech_{split}.jsonl.gz`.

    Args:
        source: the folder `LibriSpeech` or one that holds it, with
            `SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac` and, beside them,
            `SPEAKER-CHAPTER.trans.txt` (lines `SPEAKER-CHAPTER-NNNN TRANSCRIPT`).
        out: folder of the manifests.

    Returns:
        Utterances, hours and speakers of each split, and how many utterances were rejected:
        a transcript without audio, audio without a transcript, audio that cannot be opened.

    Raises:
        DataError: no split is there, a transcript is not UTF-8, or no utterance is usable.
    """
    root = source / "LibriSpeech" if (source / "LibriSpeech").is_dir() else source
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if not splits:
        raise DataError(
            f"{source}: expected the folder LibriSpeech, or the one it is in, with at least one "
            f"of {', '.join(SPLITS)}; found none of them"
        )
    items, rejected = [], []
    for split in splits:
        for chapter in sorted((root / split).glob("*/*/")):
            for found in _chapter(chapter, split):
                if isinstance(found, Item):
                    items.append(found)
                else:
                    rejected.append(found)
    return write_manifests(items, out, "librispeech", rejected)


def _chapter(chapter: Path, split: str) -> Iterator[Item | Rejected]:
    """Transcribed utterances, and audio without a transcript."""
    speaker = chapter.parent.name
    transcript = chapter / f"{speaker}-{chapter.name}.trans.txt"
    try:
        lines = transcript.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        lines = []
        missing = f"{transcript.name} is missing"
    except UnicodeDecodeError as error:
        raise DataError(f"{transcript}: expected UTF-8 text, got {error}") from None
    else:
        missing = f"not in {transcript.name}"
    transcribed = set()
    for line in filter(str.strip, lines):
        id, _, text = line.strip().partition(" ")
        transcribed.add(id)
        yield Item(id, chapter / f"{id}.flac", text, speaker, split)
    for audio in sorted(chapter.glob("*.flac")):
        if audio.stem not in transcribed:
            yield Rejected(str(audio), missing)
