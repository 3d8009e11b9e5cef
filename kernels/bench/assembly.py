"""What machine code does in one turn of its longest loop, for a kernel over time one step.

Instructions are cut into basic blocks; blocks that reach themselves form a loop, whatever order
the assembler gave them. A loop within the loop is what remains so once the blocks through which
the loop is entered are left out.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One turn of the longest loop; what loops within it do is counted once."""

    barriers: int
    spills: int  # loads and stores of spilled registers
    coherent_loads: int  # instructions that go past the L1 cache, as a hand-over must
    plain_bytes: int  # per thread, by all other loads from global memory
    repeated_bytes: (
        int  # the part of them in loops within the loop, done an unknown number of times
    )


@dataclass(frozen=True)
class _Dialect:
    """Patterns of an assembler's text; those after `instruction` are sought in its instructions."""

    label: re.Pattern[str]
    instruction: re.Pattern[str]
    jump: re.Pattern[str]  # group 1: the target
    leaves: re.Pattern[str]  # control never goes on to the next instruction
    barrier: re.Pattern[str]
    spill: re.Pattern[str]
    load: re.Pattern[str]  # from global memory; group 1: the mnemonic
    coherent: re.Pattern[str]
    bytes: dict[str, int]  # of a load, by a part of its mnemonic; 4 where none of them is found


SASS = _Dialect(
    label=re.compile(r"(\.L\S+|\$\S+):"),
    instruction=re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;"),
    jump=re.compile(r"(?:@\S+ +)?BRA\b.*`\((\S+)\)"),
    leaves=re.compile(r"(BRA `|EXIT|RET)"),  # under no predicate
    barrier=re.compile(r"(?:@\S+ +)?BAR\.(SYNC|RED)"),
    spill=re.compile(r"(?:@\S+ +)?(LDL|STL)\b"),
    load=re.compile(r"(?:@\S+ +)?((?:LDG|LDGSTS|LD)\.\S+)"),
    coherent=re.compile(r".*\.STRONG\.(GPU|SYS)\b"),  # STRONG.SM may still hit the L1 cache
    bytes={"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32},
)
AMDGCN = _Dialect(
    label=re.compile(r"(\.LBB\S+):"),
    instruction=re.compile(r"\t([a-z].*)"),
    jump=re.compile(r"s_c?branch\S*\s+(\S+)"),
    leaves=re.compile(r"s_branch|s_endpgm|s_setpc"),
    barrier=re.compile(r"s_barrier"),
    spill=re.compile(r"scratch_(load|store)"),
    load=re.compile(r"((?:global|buffer|flat)_load_\S+)"),
    coherent=re.compile(r".*\bsc1\b"),
    bytes={
        **{"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2},
        **{"dwordx2": 8, "dwordx3": 12, "dwordx4": 16},
    },
)


def longest_loop(text: str, dialect: _Dialect) -> Loop | None:
    """Read a kernel's assembly; None if it has no loop."""
    blocks, labels = _blocks(text, dialect)
    successors = _successors(blocks, labels, dialect)
    loops = _loops(successors)
    if not loops:
        return None
    loop = max(loops, key=lambda loop: sum(len(blocks[n]) for n in loop))
    entries = {n for block in successors.keys() - loop for n in successors[block]}
    body = loop - entries
    repeated = set().union(*_loops({n: successors[n] & body for n in body}))
    instructions = [line for n in loop for line in blocks[n]]
    return Loop(
        barriers=sum(bool(dialect.barrier.match(line)) for line in instructions),
        spills=sum(bool(dialect.spill.match(line)) for line in instructions),
        coherent_loads=sum(
            bool(dialect.load.match(line) and dialect.coherent.match(line)) for line in instructions
        ),
        plain_bytes=sum(_plain_bytes(line, dialect) for line in instructions),
        repeated_bytes=sum(_plain_bytes(line, dialect) for n in repeated for line in blocks[n]),
    )


def _plain_bytes(line: str, dialect: _Dialect) -> int:
    load = dialect.load.match(line)
    if not load or dialect.coherent.match(line):
        return 0
    parts = re.split(r"[._]", load[1])
    return next((dialect.bytes[part] for part in parts if part in dialect.bytes), 4)


def _blocks(text: str, dialect: _Dialect) -> tuple[list[list[str]], dict[str, int]]:
    """Instructions between labels and jumps, and the block that each label begins."""
    blocks: list[list[str]] = [[]]
    labels = {}
    for line in text.splitlines():
        if label := dialect.label.match(line):
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif instruction := dialect.instruction.match(line):
            blocks[-1].append(instruction[1])
            if dialect.jump.match(instruction[1]) or dialect.leaves.match(instruction[1]):
                blocks.append([])
    return blocks, labels


def _successors(
    blocks: list[list[str]], labels: dict[str, int], dialect: _Dialect
) -> dict[int, set[int]]:
    successors: dict[int, set[int]] = {n: set() for n in range(len(blocks))}
    for n, block in enumerate(blocks):
        last = block[-1] if block else ""
        if jump := dialect.jump.match(last):
            successors[n].add(labels[jump[1]])
        if not dialect.leaves.match(last) and n + 1 < len(blocks):
            successors[n].add(n + 1)
    return successors


def _loops(successors: dict[int, set[int]]) -> list[set[int]]:
    """Sets of blocks that reach each other and themselves."""
    predecessors: dict[int, set[int]] = {n: set() for n in successors}
    for n, following in successors.items():
        for other in following:
            predecessors[other].add(n)
    loops: list[set[int]] = []
    for n in successors:
        if not any(n in loop for loop in loops):
            loop = _reached(n, successors) & _reached(n, predecessors)
            loops += [loop] if loop else []
    return loops


def _reached(start: int, successors: dict[int, set[int]]) -> set[int]:
    """Blocks that one step or more lead to."""
    reached: set[int] = set()
    ahead = list(successors[start])
    while ahead:
        n = ahead.pop()
        if n not in reached:
            reached.add(n)
            ahead += successors[n]
    return reached
