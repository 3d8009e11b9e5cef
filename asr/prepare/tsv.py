"""Any corpus that a table describes."""

from dataclasses import replace
from pathlib import Path

from asr.prepare.dev import choose_dev
from asr.prepare.manifests import Item, Rejected, Summary, write_manifests
from asr.table import read_table

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
    items, rejected = [], []
    for row in read_table(table):
        path = row.cells["path"]
        audio = table.parent / path
        if row.fault:
            name = str(audio) if path else f"{table}:{row.line}"
            rejected.append(Rejected(name, row.fault))
        else:
            split, speaker = row.cells.get("split") or "train", row.cells.get("speaker", "")
            items.append(Item(path, audio, row.cells["transcript"], speaker, split))
    return items, rejected
