import errno
import os
from pathlib import Path

import pytest

from asr.files import replacing, write_text


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text(f"a part of {1 // 0}")
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_what_cannot_be_written_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(PermissionError) as error, replacing(path) as partial:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(partial))
    assert error.value.filename == str(path)
