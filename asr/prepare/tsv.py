"""Any corpus that a table describes."""

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from asr.errors import DataError
from asr.prepare.dev import choose_dev
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
        dev_every: one utterance in so many of split train becomes dev; for corpora of few
            speakers. How both choose: `choose_dev`.

    Returns:
        Utterances, hours and speakers of each split, and how many rows were rejected.

    Raises:
        DataError: no table, no such column, a dev part that cannot be made, or no usable row.
    """
    table = source / TABLE if source.is_dir() else source
    items, rejected = _read(table)
    dev = choose_dev(items, dev_speakers, dev_every)
    items = [replace(item, split="dev") if item.id in dev else item for item in items]
    return write_manifests(items, out, name, rejected)


def _read(table: Path) -> tuple[list[Item], list[Rejected]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return _rows(table, file)
    except OSError as error:
        raise DataError(
            f"{table}: {error.strerror}; expected a table with the columns path and transcript"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: expected a tab-separated table in UTF-8, got {error}") from None


def _rows(table: Path, lines: Iterable[str]) -> tuple[list[Item], list[Rejected]]:
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    columns = reader.fieldnames or []
    if not {"path", "transcript"} <= set(columns):
        raise DataError(
            f"{table}: expected a header line with the tab-separated columns path and transcript, "
            f"got {', '.join(columns) or 'nothing'}"
        )
    items, rejected = [], []
    for row in reader:
        audio = table.parent / row["path"]
        if not row["path"]:
            rejected.append(Rejected(f"{table}:{reader.line_num}", "no path in this line"))
        elif None in row:  # where DictReader puts cells without a column
            rejected.append(Rejected(str(audio), f"more cells than the {len(columns)} columns"))
        else:
            split, speaker = row.get("split") or "train", row.get("speaker") or ""
            items.append(Item(row["path"], audio, row["transcript"], speaker, split))
    return items, rejected
