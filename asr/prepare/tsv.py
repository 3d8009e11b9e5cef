"""Any corpus that a table describes."""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asr.errors import DataError
from asr.prepare.manifests import Item, Rejected, Summary, write_manifests

TABLE = "utterances.tsv"


def prepare_tsv(
    source: Path, out: Path, name: str, dev_speakers: int = 0, dev_every: int = 0
) -> Summary:
    """Prepare a corpus listed in a tab-separated table with a header line.

    The table needs the columns `path` (of the audio, relative to the table) and `transcript`; it
    may have `split` (an empty one means train) and `speaker`; other columns are ignored. The path
    as written is the utterance's id. There are no quotes: a cell holds neither tab nor newline.

    Args:
        source: the table, or a folder that holds it as `utterances.tsv`.
        out: folder of the manifests.
        name: manifests are called `{name}_{split}.jsonl.gz`.
        dev_speakers: so many speakers of split train become split dev.
        dev_every: this share, one in so many, of the utterances of split train becomes dev; for
            corpora of few speakers. Both choose by a hash of the speaker's or utterance's name:
            what is added to the corpus later hardly moves what was there.

    Returns:
        Utterances, hours and speakers of each split, and how many rows were rejected.

    Raises:
        DataError: no table, no such column, a dev part that cannot be made, or no usable row.
    """
    table = source / TABLE if source.is_dir() else source
    items, rejected = _read(table)
    if dev_speakers < 0 or dev_every < 0 or (dev_speakers and dev_every):
        raise DataError(
            f"{table}: expected either dev_speakers or dev_every to be positive, "
            f"got {dev_speakers} and {dev_every}"
        )
    if dev_speakers or dev_every:
        if any(item.split == "dev" for item in items):
            raise DataError(f"{table}: already has a split dev; leave dev_speakers and dev_every 0")
        dev = _by_speaker(items, dev_speakers, table) if dev_speakers else _one_in(items, dev_every)
        items = [replace(item, split="dev") if item.id in dev else item for item in items]
    return write_manifests(items, out, name, rejected)


def _read(table: Path) -> tuple[list[Item], list[Rejected]]:
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(
            f"{table}: {error.strerror}; expected a table with the columns path and transcript"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: expected UTF-8 text, got {error}") from None
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = reader.fieldnames or []
    if not {"path", "transcript"} <= set(columns):
        raise DataError(
            f"{table}: expected a header line with the tab-separated columns path and transcript, "
            f"got {', '.join(columns) or 'nothing'}"
        )
    items, rejected = [], []
    for row in reader:
        cells = len(columns) - list(row.values()).count(None) + len(row.get(None) or [])
        if cells != len(columns) or not row["path"]:
            where = row["path"] or f"{table.name}:{reader.line_num}"
            rejected.append(
                Rejected(where, f"row of {cells} cells, expected {len(columns)} and a path")
            )
            continue
        items.append(
            Item(
                id=row["path"],
                audio=table.parent / row["path"],
                text=row["transcript"],
                speaker=row.get("speaker") or "",
                split=row.get("split") or "train",
            )
        )
    return items, rejected


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _by_speaker(items: Sequence[Item], count: int, table: Path) -> set[str]:
    train = [item for item in items if item.split == "train"]
    speakers = sorted({item.speaker for item in train} - {""}, key=_hash)
    if len(speakers) <= count:
        raise DataError(
            f"{table}: expected more than dev_speakers = {count} named speakers in split train, "
            f"got {len(speakers)}; take fewer, or use dev_every"
        )
    return {item.id for item in train if item.speaker in speakers[:count]}


def _one_in(items: Sequence[Item], every: int) -> set[str]:
    return {item.id for item in items if item.split == "train" and _hash(item.id) % every == 0}
