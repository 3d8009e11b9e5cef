"""`python -m asr`: the command line, as `torchrun -m asr train ...` starts it."""

from asr.cli import main

main()
