"""The kernels compiled for GPUs that are not here: resources, and widths of loads and stores.

They are compiled in the blocks that are launched.
"""

import re

import pytest

from tests.kernels.compiled import MINOR, TABLES, compiled

# Bytes of shared memory that a program may have: the table of compute capabilities in the CUDA C++
# Programming Guide. CDNA 2 and 3 have 64 KB of LDS.
SHARED = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx90a": 64 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
RECORDED = ("sm_80", "sm_90", "sm_100", "gfx942")
OTHERS = ("sm_75", "sm_89", "sm_120", "gfx90a", "gfx950")
# Registers that a thread may have so that 512 threads run at a time, or 256 for the product and
# for columns that are not neighbours. A SIMD of CDNA 3 has 512 a lane.
REGISTERS = {"sm_80": 128, "sm_90": 128, "sm_100": 128, "gfx942": 256}
# What Triton before 3.9 makes a little worse: the registers of a thread, or bytes on its stack.
WORSE = {
    "sm_80 logprob_bwd bf16 V=50257 softcap": ("registers", 168),
    "sm_120 linear_logprob_rows kept fp64": ("stack", 16),
    "sm_120 linear_logprob_fwd bf16 bias": ("stack", 8),
    "sm_120 linear_logprob_fwd fp16 bias": ("stack", 8),
}
NEWEST = max(TABLES, key=lambda minor: [int(number) for number in minor.split(".")])
COUNTS = ("instructions", "loops", "fewest")
PRODUCT = "linear_logprob_fwd"
ROWS = "linear_logprob_rows"
JOIN = "linear_logprob_join"


def most(name: str, resource: str, rule: int, minor: str = MINOR) -> int:
    """What a kernel may use of a resource: the rule, or what an old Triton is known to use."""
    known, value = WORSE.get(name, (None, 0))
    return value if known == resource and minor in ("3.6", "3.7") else rule


@pytest.fixture(scope="module")
def resources() -> dict[str, dict]:
    return compiled("--often")


def test_no_kernel_spills_or_outgrows_its_chip(resources):
    # For each target: two kernels for four dtypes and for rows off the grid of 16 bytes, with and
    # without a softcap, for columns apart and written in place, for float64 off the grid, and for
    # 32-bit labels; five for rewards; with and without a softcap, nine row kernels, five tiles
    # computed again, and two kernels for each of twelve products, and for a width of 264
    # with a bias and without; 16 listwise losses and two means of them.
    assert len(resources) == 4 * (2 * (5 * 2 + 4) + 5 + 2 * (9 + 5 + 2 * 12) + 4 + 18)
    check_limits(resources)


def check_limits(resources):
    """Nothing is on a stack, and kernels fit on a chip; on those recorded, several programs do."""
    for name, used in resources.items():
        check_chip(name, used)
        target = name.split()[0]
        # The listwise losses have far fewer threads than a chip, so their programs need not make
        # room for others.
        free = PRODUCT in name or "apart" in name
        alone = 255 if free else 256 if "preference" in name else REGISTERS.get(target, 255)
        assert used["registers"] <= most(name, "registers", alone), name


def check_chip(name: str, used: dict, minor: str = MINOR) -> None:
    """No number is on a stack, and a program's threads, registers and shared memory are there."""
    target = name.split()[0]
    assert used["threads"] <= 1024, name
    assert used["spills"] == 0, name
    assert used["stack"] <= most(name, "stack", 0, minor), name
    assert used["shared"] <= SHARED[target], name
    # NVIDIA's multiprocessor has 65,536 registers. AMD's four SIMDs have 512 a lane each, of which
    # a program's warps of 64 threads take turns.
    if target.startswith("gfx"):
        assert used["registers"] * -(-used["threads"] // 256) <= 512, name
    else:
        assert used["registers"] * used["threads"] <= 65536, name


@pytest.mark.long
@pytest.mark.parametrize("target", RECORDED)
def test_exact_losses_of_any_size_keep_to_registers(target):
    """Each number of responses is a kernel of its own, with masks and without."""
    found = compiled("--sizes", "--targets", target)
    assert len(found) == 2 * (11 + 11 + 9)
    check_limits(found)


@pytest.mark.parametrize("target", OTHERS)
def test_other_architectures_compile(target):
    """Those without an entry in the tuning tables take one that they can launch.

    Before sm_80 Triton has no tensor cores, and PyTorch does not build for Volta any more.
    """
    found = compiled("--often", "--targets", target)
    assert {name.split()[1] for name in found} == {name.split()[1] for name in TABLES[MINOR]}
    for name, used in found.items():
        check_chip(name, used)


@pytest.mark.long
@pytest.mark.parametrize("target", RECORDED + OTHERS)
def test_every_branch_keeps_to_registers(target):
    """What the test command leaves out: dtypes, layouts, masks and sizes of the same kernels."""
    found = compiled("--targets", target)
    for name, used in found.items():
        check_chip(name, used)
    recorded = of_target(TABLES.get(MINOR, {}), target)
    assert {name: found.get(name) for name in recorded} == recorded
    assert target in OTHERS or MINOR != NEWEST or recorded.keys() == found.keys()


def of_target(table: dict[str, dict], target: str) -> dict[str, dict]:
    """The recorded rows of a target, without what is counted of loops."""
    return {
        name: {key: value for key, value in used.items() if key not in COUNTS}
        for name, used in table.items()
        if name.startswith(f"{target} ")
    }


def test_the_product_runs_on_tensor_cores(resources):
    """On sm_90 warpgroups multiply 16-bit factors, and descriptors fetch the aligned ones."""
    for name, used in resources.items():
        if PRODUCT in name and name.startswith("sm_90"):
            assert (used["wgmma"] > 0) == ("fp32" not in name), name
            assert (used["tma"] > 0) == ("fp32" not in name and "odd" not in name), name


def aligned(resources) -> dict[str, dict[str, int]]:
    """The kernels whose rows of logits start at multiples of 16 bytes."""
    kernels = ("logprob_fwd", "logprob_bwd", ROWS)
    return {
        name: used
        for name, used in resources.items()
        if name.split()[1] in kernels and "V=" not in name and "apart" not in name
    }


def test_logits_move_in_16_bytes(resources):
    for name, used in aligned(resources).items():
        assert used["load"] == 16, name
        # For 16 bytes of float32 logits.
        kept = 8 if re.search("(kept|tile) (bf16|fp16)", name) else 16
        numbers = 8 if "fp64" in name else 4  # a forward writes three numbers a row, one by one
        assert used["store"] == (kept if "bwd" in name or "kept" in name else numbers), name


def test_resources_are_the_recorded_ones(resources, capsys):
    rows = {name.split(" ", 1)[1] for name in resources}
    with capsys.disabled():
        print(f"\n{'registers / shared memory':36}", *(f"{target:>11}" for target in RECORDED))
        for row in sorted(rows):
            used = (resources[f"{target} {row}"] for target in RECORDED)
            print(f"{row:36}", *(f"{u['registers']:4} /{u['shared']:5}" for u in used))
    if MINOR not in TABLES:
        pytest.skip(f"no table for triton {MINOR}; tools/kernel_resources.py --write records one")
    known = {}
    for target in RECORDED:
        known |= of_target(TABLES[MINOR], target)
    assert resources == {name: known.get(name) for name in resources}, (
        "changed on purpose? then run tools/kernel_resources.py --write"
    )


@pytest.mark.parametrize("minor", sorted(TABLES))
def test_recorded_tables_are_sound(minor, resources):
    """The recorded tables of all supported versions of Triton keep to the chips too.

    Each has at least what the test command compiles, the newest one every branch.
    """
    assert resources.keys() <= TABLES[minor].keys() <= TABLES[NEWEST].keys()
    for name, used in TABLES[minor].items():
        check_chip(name, used, minor)
        multiplies = name.startswith("sm_90") and "fp32" not in name
        assert used.get("wgmma", 1) > 0 or not multiplies, (minor, name)
    for name, used in aligned(TABLES[minor]).items():
        assert used["load"] == 16, (minor, name)
