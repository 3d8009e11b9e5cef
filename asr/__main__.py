"""`asr`, and `python -m asr` as `torchrun -m asr train ...` starts it."""

import os
import sys


def main() -> None:
    """Run the command line, and leave without the half second that torch takes to clean up."""
    if sys.stdout is None:  # what is found would be lost
        os._exit(_complain("standard output: closed"))
    status = _run()
    try:
        sys.stdout.flush()
    except OSError as error:  # which has been said already of what was flushed before
        status = status or _complain(f"standard output: {error.strerror}")
    os._exit(status)


def _run() -> int:
    """The exit status, whatever happens before there is a command that could say it."""
    try:
        from asr.cli import run
        from asr.memory import keep_freed_memory

        keep_freed_memory()
        run()
    except KeyboardInterrupt:
        print("asr: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # help that cannot be written
        return _complain(f"standard output: {error.strerror}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _complain(error: str) -> int:
    print(f"asr: error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
