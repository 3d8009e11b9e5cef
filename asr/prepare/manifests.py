"""Utterances of any corpus -> lhotse manifests, a list of what was left out, and a summary."""

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from asr.audio import audio_info, read_blocks
from asr.errors import AudioError, DataError
from asr.files import replacing, write_text
from asr.text import foreign_letters, normalize

_THREADS = max(8, os.cpu_count() or 1)  # a few more than cores: they wait for the disk too
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # part of a file's name on any system


@dataclass(frozen=True)
class Item:
    """An utterance as a corpus describes it, its audio not looked at yet."""

    id: str  # unique in the corpus
    audio: Path
    text: str  # as written in the corpus
    speaker: str  # empty: not known
    split: str


@dataclass(frozen=True)
class Audio:
    """What decoding a file gave."""

    samples: int  # of one channel
    sample_rate: int  # Hz
    channels: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Rejected:
    """Something of a corpus that is in no manifest."""

    path: str
    reason: str


@dataclass(frozen=True)
class Part:
    """What one written manifest holds."""

    manifest: Path
    utterances: int
    hours: float
    speakers: int  # with a name

    def __str__(self) -> str:
        return (
            f"{self.manifest}: {self.utterances} utterances, {self.hours:.2f} hours, "
            f"{self.speakers} speakers"
        )


@dataclass(frozen=True)
class Summary:
    """What a preparation wrote, split by split, and how much it left out."""

    parts: dict[str, Part]  # by split, in alphabetical order
    rejected: int
    rejections: Path  # TSV of path and reason
    earlier: tuple[Path, ...]  # manifests of such names that were there, and are not of this corpus

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts.values())

    def __str__(self) -> str:
        lines = [str(part) for part in self]
        if self.rejected:
            lines.append(f"{self.rejections}: {self.rejected} left out, with the reasons")
        lines += [
            f"{manifest}: was there before and is left as it was; remove it if it is of an earlier "
            "preparation of this corpus"
            for manifest in self.earlier
        ]
        return "\n".join(lines)


def write_manifests(
    items: Iterable[Item], out: Path, name: str, rejected: Sequence[Rejected] = ()
) -> Summary:
    """Write `OUT/{name}_{split}.jsonl.gz` for each split and `OUT/{name}_rejected.tsv`.

    Each manifest is a lhotse CutSet sorted by id: a cut is a whole recording with one
    supervision, the normalised transcript. The same items give the same bytes. Each file is
    written atomically. Every audio file is decoded once, in threads, so that no training stops
    at a damaged one; LibriSpeech's FLAC goes at some thousand times real time a core.

    Args:
        items: the utterances; those whose audio cannot be read to its end, whose transcript is
            empty or has letters of other scripts, or whose id came before are rejected.
        out: folder of the manifests; made if needed.
        name: of the corpus.
        rejected: what the caller left out already.

    Raises:
        DataError: a split or `name` cannot be part of a file's name, the path of an audio file is
            not UTF-8, or no utterance is left.
    """
    items = list(items)
    for part in {name, *(item.split for item in items)}:
        if not _NAME.fullmatch(part):
            raise DataError(
                f"{part!r}: expected a corpus or split name of letters, digits, '.', '_' and '-'"
            )
    for item in items:
        _check_path(item.audio)
    rejections = out / f"{name}_rejected.tsv"
    kept, left_out = _inspect(items)
    left_out = [*rejected, *left_out]
    write_text(rejections, _table(left_out))
    if not kept:
        first = f"; the first: {left_out[0].path}: {left_out[0].reason}" if left_out else ""
        raise DataError(
            f"{name}: expected at least one usable utterance, got {len(left_out)} that are not "
            f"(see {rejections}){first}"
        )
    earlier = set(out.glob(f"{name}_*.jsonl.gz"))
    parts = {}
    for split in sorted({item.split for item, _ in kept}):
        chosen = sorted((pair for pair in kept if pair[0].split == split), key=lambda p: p[0].id)
        parts[split] = _write_part(chosen, out / f"{name}_{split}.jsonl.gz")
    earlier -= {part.manifest for part in parts.values()}
    return Summary(parts, len(left_out), rejections, tuple(sorted(earlier)))


def _check_path(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{str(path.absolute())!r}: expected a path in UTF-8; rename what is not"
        ) from None


def _inspect(items: Sequence[Item]) -> tuple[list[tuple[Item, Audio]], list[Rejected]]:
    kept, rejected = [], []
    seen: Counter[str] = Counter()
    for item, result in zip(items, _decoded(items), strict=True):
        seen[item.id] += 1
        if seen[item.id] > 1:
            rejected.append(Rejected(str(item.audio), f"the id {item.id} came before"))
        elif not normalize(item.text):
            rejected.append(Rejected(str(item.audio), f"empty transcript {item.text!r}"))
        elif letters := foreign_letters(item.text):
            reason = f"transcript with letters that are none of A-Z: {letters}"
            rejected.append(Rejected(str(item.audio), reason))
        elif isinstance(result, Audio):
            kept.append((item, result))
        else:
            rejected.append(Rejected(str(item.audio), result))
    return kept, rejected


def _decoded(items: Sequence[Item]) -> Iterator[Audio | str]:
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield from pool.map(_decode, items)
    finally:  # after Ctrl-C nobody waits for what is left
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(item: Item) -> Audio | str:
    """The audio's measures, or why it cannot be used."""
    try:
        info = audio_info(item.audio)
        samples = sum(map(len, read_blocks(item.audio, info.sample_rate)))
    except AudioError as error:
        return str(error).removeprefix(f"{item.audio}: ")
    return Audio(samples, info.sample_rate, info.channels)


def _write_part(chosen: Sequence[tuple[Item, Audio]], path: Path) -> Part:
    # gzip's own time stamp is left out, so that the same corpus gives the same bytes.
    with (
        replacing(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
    ):
        for item, audio in chosen:
            packed.write((json.dumps(_cut(item, audio), ensure_ascii=False) + "\n").encode())
    return Part(
        path,
        len(chosen),
        sum(audio.seconds for _, audio in chosen) / 3600,
        len({item.speaker for item, _ in chosen} - {""}),
    )


def _cut(item: Item, audio: Audio) -> dict[str, object]:
    from lhotse import AudioSource, Recording, SupervisionSegment  # seconds to import

    channels = list(range(audio.channels))
    recording = Recording(
        id=item.id,
        sources=[AudioSource(type="file", channels=channels, source=str(item.audio.absolute()))],
        sampling_rate=audio.sample_rate,
        num_samples=audio.samples,
        duration=audio.seconds,
        channel_ids=channels,
    )
    cut = recording.to_cut()
    cut.id = item.id
    cut.supervisions = [
        SupervisionSegment(
            id=item.id,
            recording_id=item.id,
            start=0.0,
            duration=audio.seconds,
            channel=channels[0] if len(channels) == 1 else channels,
            text=normalize(item.text),
            speaker=item.speaker or None,
        )
    ]
    values: dict[str, object] = cut.to_dict()
    return values


def _table(rejected: Iterable[Rejected]) -> str:
    rows = sorted((entry.path, entry.reason) for entry in rejected)
    table = "".join(
        "\t".join(" ".join(cell.split()) for cell in row) + "\n"
        for row in [("path", "reason"), *rows]
    )
    return table.encode(errors="backslashreplace").decode()  # a file's name need not be UTF-8
