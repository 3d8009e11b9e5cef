"""Atomic writes: a reader sees the old file or the new one, never a part. One writer a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from asr.errors import AsrError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, on error it goes.

    Of a link, the file that it leads to is replaced. What is no file, such as /dev/null, is not
    replaced but written to, under its own name.

    Raises:
        OSError: `path` cannot be written; it is named, not the temporary file.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    file = path.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask will have it
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        partial.replace(file)
    except SafetensorError as error:  # safetensors' way to say that the disk is full
        raise OSError(f"{path}: cannot be written: {error}") from None
    except OSError as error:
        # A write, as on a full disk, names no file; an error without a number says all itself.
        if error.errno is not None and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def reserved(folder: Path, *parts: str) -> Iterator[None]:
    """Make `folder` if needed, and keep other trainings out; the system lets go of a killed one's.

    What a killed one left half written goes, in the folder and in its `parts`. On a file system
    without locks nobody is kept out. A folder made here goes again if nothing has come into it.

    Raises:
        AsrError: another one is at work there.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AsrError(
                f"{folder}: another training is at work here; wait for its end, or train elsewhere"
            ) from None
        except OSError:
            pass
        else:
            for place in (folder, *(folder / part for part in parts)):
                for partial in place.glob(".*.partial"):
                    partial.unlink(missing_ok=True)
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # there is something in it
                    folder.rmdir()
    finally:
        os.close(descriptor)
