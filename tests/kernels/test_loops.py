"""Instructions of loops in machine code, and that docs/design.md quotes what is recorded."""

import json

import pytest

from tests.kernels.compiled import MINOR, ROOT, TABLES, python
from tools import machine_code

ADD = "FADD R0, R0, R1"
# Two nested loops. A turn of the inner one may leave out two instructions. What stands behind EXIT
# jumps back into the outer loop, from which only EXIT leads there, and the last line traps.
NESTED = [
    "MOV R1, 0x10",
    ADD,  # 1: the outer loop
    ADD,  # 2: the inner one
    "@P0 BRA 0x60",
    ADD,
    ADD,
    "@!P1 BRA 0x20",  # 6
    ADD,
    "@P2 BRA 0x10",  # 8
    "EXIT",
    "BRA 0x10",
    "BRA 0xb0",
    "NOP",
]


def test_a_branch_back_closes_a_loop():
    """The inner loop has 5 instructions and at least 3, the outer one 8 and at least 6."""
    assert machine_code.loops(NESTED) == [(5, 3), (8, 6)]


def test_a_loop_that_waits_for_a_word_does_not_count():
    assert machine_code.loops([ADD, "SYNCS.PHASECHK P1", "@!P1 BRA 0x10", "EXIT"]) == []


# Cases of docs/design.md, and what its tables say of them.
FORWARD, KEPT, CAPPED = "logprob_fwd", "linear_logprob_rows kept bf16", " softcap"
QUOTED = {
    "preference_jsd jsd exact 8": "Jensen-Shannon of 8",
    "preference_jsd jsd exact 10": "Jensen-Shannon of 10",
    "preference_kl kl exact 12": "KL of 12",
    "preference_sampled kl sampled 16": "KL from drawn rankings, 16",
    "preference_sampled reverse_kl sampled 16": "reverse KL, the same",
    KEPT: "rows that keep their gradient, V=128,256",
    f"{KEPT} odd": "rows of V=50,257",
    f"{KEPT}{CAPPED}": "the same with a softcap, V=256,000",
    f"{FORWARD} bf16{CAPPED}": "logits with a softcap, bfloat16, forward alone",
}


def numbers(case: str) -> list[str]:
    """What a row says of a case, as it is written there."""
    used = TABLES["3.9"][f"sm_90 {case}"]
    loops = used["loops"]
    if case.startswith(FORWARD):  # a thread has 16 entries of a tile
        return [f"{min(used['fewest']) / 16:.1f} instructions an entry"]
    if case.startswith(KEPT):  # one walk, and others for rows that are NaN or improbable
        return [f"one walk: {loops[0]} instructions"]
    if case.endswith("jsd exact 10"):  # the outer loop holds the inner one
        loops = [loops[0], loops[1] - loops[0]]
    if case.endswith("kl exact 12"):  # one loop, and what comes before and after it
        loops = [*loops, used["instructions"] - sum(loops)]
    return [f"{count:,}" for count in loops]


@pytest.mark.parametrize(("case", "row"), QUOTED.items())
def test_the_design_quotes_what_is_recorded(case, row):
    lines = (ROOT / "docs" / "design.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {row} |"))
    found = [line.find(number) for number in numbers(case)]
    assert -1 not in found, (numbers(case), line)
    assert found == sorted(found)


COUNT = """
import json, sys
from tools.kernel_resources import every_case, table

names = json.loads(sys.argv[1])
cases = [case for case in every_case() if case.name in names]
print(json.dumps(table(["sm_90"], cases, loops=True)))
"""


def test_loops_are_the_recorded_ones():
    if "loops" not in TABLES.get(MINOR, {}).get(f"sm_90 {KEPT}", {}):
        pytest.skip(f"no loops of triton {MINOR}; tools/kernel_resources.py --write records them")
    names = json.dumps(["kept bf16", "reverse_kl sampled 16"])
    for name, used in json.loads(python("-c", COUNT, names)).items():
        assert used == TABLES[MINOR][name], name
