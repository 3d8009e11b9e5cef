import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asr.errors import AsrError
from asr.files import replacing, reserved, write_text


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
    with pytest.raises(OSError, match="No space left") as error, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a write knows no name
    assert error.value.filename == str(path)
    with pytest.raises(OSError, match="no such codec") as error, replacing(path):
        raise OSError("no such codec")
    assert error.value.filename is None


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As `--out /dev/null` is: a file in its place would break every other program."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    write_text(path, "new")
    assert os.read(end, 10) == b"new"
    os.close(end)
    assert path.is_fifo()
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_a_link_still_leads_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.txt").write_text("old")
    path = tmp_path / "a.txt"
    path.symlink_to("disk/a.txt")
    write_text(path, "new")
    assert path.is_symlink()
    assert (tmp_path / "disk" / "a.txt").read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_up_to_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        with replacing(tmp_path / "a.safetensors") as partial:
            save_file({"x": torch.zeros(1)}, partial)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == mode


def test_a_folder_made_for_nothing_goes_but_not_from_under_its_holder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with reserved(folder):
        for _ in range(2):  # the refused one neither takes the folder away nor the lock on it
            with pytest.raises(AsrError), reserved(folder):
                pass
            assert folder.is_dir()
    assert not folder.exists()
    folder.mkdir()
    with reserved(folder):
        pass
    assert folder.is_dir()  # it was there before


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch) -> None:
    """Some network file systems have none; a training must still be possible there."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with reserved(tmp_path), pytest.raises(AsrError), reserved(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", flock)
    with reserved(tmp_path), reserved(tmp_path):
        pass


def test_what_a_killed_training_left_half_written_goes(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "epochs", tmp_path / "another"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / ".weights.safetensors.123.partial").write_text("a part")
        (folder / "weights.safetensors").write_text("all")
    with reserved(tmp_path, "epochs", "model"):
        left = [len(list(folder.glob("*.partial"))) for folder in folders]
        assert left == [0, 0, 1]
    assert all((folder / "weights.safetensors").exists() for folder in folders)
