"""Tables of recordings: tab-separated, a header line, the columns path and transcript at least."""

import csv
from dataclasses import dataclass
from pathlib import Path

from asr.errors import DataError

_NEEDED = ("path", "transcript")


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    line: int
    cells: dict[str, str]  # by column; "" where the line ends before it
    fault: str  # why it cannot be used, or ""


def read_table(path: Path) -> list[Row]:
    """All rows after the header. There are no quotes: a cell holds neither tab nor newline.

    Raises:
        DataError: no such file, not a table in UTF-8, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = reader.fieldnames or []
            if not set(_NEEDED) <= set(columns):
                raise DataError(
                    f"{path}: expected a header line with the tab-separated columns "
                    f"{' and '.join(_NEEDED)}, got {', '.join(columns) or 'nothing'}"
                )
            return [_row(reader.line_num, cells, len(columns)) for cells in reader]
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected a table with the columns {' and '.join(_NEEDED)}"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a tab-separated table in UTF-8, got {error}") from None


def _row(line: int, cells: dict[str, str | None], columns: int) -> Row:
    fault = ""
    if None in cells:  # where DictReader puts cells without a column
        fault = f"more cells than the {columns} columns"
    elif not cells["path"] or cells["transcript"] is None:
        fault = f"no {'transcript' if cells['path'] else 'path'} in this line"
    return Row(line, {name: value or "" for name, value in cells.items() if name}, fault)
