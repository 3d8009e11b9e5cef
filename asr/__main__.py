"""`asr`, and `python -m asr` as `torchrun -m asr train ...` starts it."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being imported is no traceback either."""
    try:
        from asr.cli import run

        run()
    except KeyboardInterrupt:
        print("asr: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
