"""The loops of a kernel in the machine code of NVIDIA's GPUs, read with Triton's own cuobjdump."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

BYTES = 16  # the size of an instruction, since Volta


def cuobjdump(cubin: bytes, option: str) -> str:
    """What cuobjdump prints of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def instructions(cubin: bytes) -> list[str]:
    """The instructions of a kernel, in the order of their addresses."""
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", cuobjdump(cubin, "-sass"))


def loops(code: list[str]) -> list[tuple[int, int]]:
    """The instructions of each loop, and the fewest of them that a turn takes.

    A branch to an earlier address closes a loop if that address leads to the branch. The
    instructions are all in between, with those of inner loops and of branches that are not always
    taken. Loops that wait for one word of memory, of fewer than 4 instructions, are left out.
    """
    targets = {
        at: int(found[1], 16) // BYTES
        for at, line in enumerate(code)
        if (found := re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", line))
    }
    found = []
    for last, first in sorted(targets.items()):
        fewest = _fewest(code, targets, first, last)
        if fewest is not None and last - first >= 3:
            found.append((last - first + 1, fewest))
    return found


def _fewest(code: list[str], targets: dict[int, int], first: int, last: int) -> int | None:
    """The fewest instructions from one to a later one, both counted; None if no way leads there."""
    taken = {first: 1}
    for at in range(first, last):
        if at not in taken:
            continue
        # "BRA P0, 0x40" too goes on where P0 is false.
        leaves = re.match(r"(BRA\S*\s+0x|EXIT|RET)", code[at])
        for after in {targets.get(at, last + 1)} | (set() if leaves else {at + 1}):
            if at < after <= last:
                taken[after] = min(taken.get(after, last), taken[at] + 1)
    return taken.get(last)
