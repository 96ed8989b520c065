"""The kernels compiled for GPUs that are not here: resources, widths, number of compilations.

They are compiled in the blocks that are launched. Compilation needs a process in which the
interpreter is off, so tools/kernel_resources.py runs in one.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parents[2]
TABLES = json.loads((Path(__file__).parent / "resources.json").read_text())
MINOR = ".".join(triton.__version__.split(".")[:2])
# Bytes of shared memory that a program may have: the table of compute capabilities in the CUDA C++
# Programming Guide. CDNA 3 has 64 KB of LDS.
SHARED = {
    "sm_75": 64 << 10,
    "sm_80": 163 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx90a": 64 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
RECORDED = ("sm_80", "sm_90", "sm_100", "gfx942")
# Registers that a thread may have so that 512 threads run at a time, or 256 for the product.
# A SIMD of CDNA 3 has 512 a lane.
REGISTERS = {"sm_80": 128, "sm_90": 128, "sm_100": 128, "gfx942": 256}
# What Triton before 3.9 makes a little worse: the registers of a thread, or bytes on its stack.
WORSE = {
    "sm_80 logprob_bwd bf16 V=50257 softcap": ("registers", 168),
    "sm_120 linear_logprob_rows kept fp64": ("stack", 16),
    "sm_120 linear_logprob_fwd bf16 bias": ("stack", 8),
    "sm_120 linear_logprob_fwd fp16 bias": ("stack", 8),
}
PRODUCT = "linear_logprob_fwd"
ROWS = "linear_logprob_rows"
JOIN = "linear_logprob_join"


def python(*arguments: str, **variables: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"
    } | variables
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def most(name: str, resource: str, rule: int) -> int:
    """What a kernel may use of a resource: the rule, or what an old Triton is known to use."""
    known, value = WORSE.get(name, (None, 0))
    return value if known == resource and MINOR in ("3.6", "3.7") else rule


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, int]]:
    return json.loads(python("tools/kernel_resources.py"))[MINOR]


def test_no_kernel_spills_or_outgrows_its_chip(resources):
    # For each target: two kernels for four dtypes and for rows off the grid of 16 bytes, with and
    # without a softcap, and for 32-bit labels; five for rewards; with and without a softcap, eight
    # row kernels, five tiles computed again, and two kernels for each of twelve products; 16
    # listwise losses and two means of them.
    assert len(resources) == 4 * (2 * (5 * 2 + 1) + 5 + 2 * (8 + 5 + 2 * 12) + 18)
    check_limits(resources)


def check_limits(resources):
    """Nothing is on a stack, and threads, registers and shared memory fit on each chip."""
    for name, used in resources.items():
        target = name.split()[0]
        assert used["threads"] <= 1024, name
        assert used["spills"] == 0, name
        assert used["stack"] == 0, name
        assert used["shared"] <= SHARED[target], name
        # The listwise losses have far fewer threads than a chip, so their programs need not make
        # room for others.
        alone = 255 if PRODUCT in name else 256 if "preference" in name else REGISTERS[target]
        assert used["registers"] <= most(name, "registers", alone), name
        assert used["registers"] * used["threads"] <= 65536 or target.startswith("gfx"), name


@pytest.mark.long
@pytest.mark.parametrize("target", RECORDED)
def test_exact_losses_of_any_size_keep_to_registers(target):
    """Each number of responses is a kernel of its own, with masks and without."""
    command = ("tools/kernel_resources.py", "--sizes", "--targets", target)
    found = json.loads(python(*command))[MINOR]
    assert len(found) == 2 * (11 + 11 + 9)
    check_limits(found)


@pytest.mark.parametrize("target", ["sm_75", "sm_120", "gfx90a", "gfx950"])
def test_other_architectures_compile(target):
    """Those without an entry in the tuning tables take one that they can launch.

    Before sm_80 Triton has no tensor cores, and PyTorch does not build for Volta any more.
    """
    found = json.loads(python("tools/kernel_resources.py", "--targets", target))[MINOR]
    assert found
    for name, used in found.items():
        assert used["threads"] <= 1024, name
        assert used["spills"] == 0, name
        assert used["stack"] <= most(name, "stack", 0), name
        assert used["shared"] <= SHARED[target], name
        assert used["registers"] * used["threads"] <= 65536 or target.startswith("gfx"), name


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
        if name.split()[1] in kernels and "V=" not in name
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
    assert resources == TABLES[MINOR], (
        "changed on purpose? then run tools/kernel_resources.py --write"
    )


@pytest.mark.parametrize("minor", sorted(TABLES))
def test_recorded_tables_are_sound(minor):
    """The recorded tables of all supported versions of Triton have no spills either."""
    assert TABLES[minor].keys() == TABLES[sorted(TABLES)[0]].keys()
    for name, used in TABLES[minor].items():
        assert used["spills"] == 0, (minor, name)
        assert used["stack"] == 0, (minor, name)
        multiplies = name.startswith("sm_90") and "fp32" not in name
        assert used.get("wgmma", 1) > 0 or not multiplies, (minor, name)
    for name, used in aligned(TABLES[minor]).items():
        assert used["load"] == 16, (minor, name)


FUSION = """
import json, re
from tools.kernel_resources import logprob_cases, only_compile, response_cases

found = {}
for name, go in logprob_cases() + response_cases():
    if name in ("bf16", "bf16 V=50257", "bf16 softcap", "fp32 padded"):
        with only_compile("sm_90") as kernels:
            go("sm_90")
        for kernel in kernels:
            multiply_adds = len(re.findall(r"fma\\.\\S*f32", kernel.asm["ptx"]))
            found[f"{kernel.name} {name}"] = (kernel.metadata.enable_fp_fusion, multiply_adds)
print(json.dumps(found))
"""


def test_products_and_sums_are_fused_where_it_does_no_harm():
    """Fusion is the same whatever the default, and off where it would do harm.

    Without a softcap, z = inner * x has to be rounded before the peak is subtracted: in each tile,
    in the tail and for the label. Then no multiply-add is left but those of the row's one
    logarithm, fewer than the 16 entries that a thread has of a tile.
    """
    found, again = (
        json.loads(python("-c", FUSION, TRITON_DEFAULT_FP_FUSION=default)) for default in "01"
    )
    assert found == again
    for name, (fused, multiply_adds) in found.items():
        assert fused == ("softcap" in name), name
        assert "softcap" in name or multiply_adds < (16 if "fwd" in name else 1), name


COUNT = """
import torch
from pad_fast.kernels.logprob import launch, tuning
from pad_fast.logprob.softmax import TokenOptions
from tools.kernel_resources import only_compile

tilings = tuning.TILINGS["sm_90"]

def go(kernels, shapes, *every, dtype=torch.bfloat16, labels=torch.int64):
    before = len(kernels)
    for shape in shapes:
        for options in every:
            x, y = torch.zeros(shape, dtype=dtype), torch.zeros(shape[:2], dtype=labels)
            tiling = tilings.of(options.softcap)
            logp, peak, total = launch.forward(x, y, options, tiling=tiling)
            written = torch.empty_like(x)
            launch.backward(logp, x, y, (peak, total), options, written, tiling=tiling)
    print(len(kernels) - before)

plain, scaled = TokenOptions(), TokenOptions(0.7, 0.0, 2.0, 0)
capped = (TokenOptions(1.0, 30.0, 1.0, -100), TokenOptions(0.5, 50.0, 0.1, -1))
rows = ((1, 1), (1, 7), (2, 3), (16, 1), (5, 64))
odd = ((3, 5), (2, 7), (16, 1))
with only_compile("sm_90") as kernels:
    go(kernels, [(r, t, v) for r, t in rows for v in (32000, 128256)],
       plain, scaled, TokenOptions(1.5, 0.0, -1.0, 1))
    go(kernels, [(1, 5, 32000)], *capped)
    go(kernels, [(r, t, v) for r, t in odd for v in (50257, 32001, 151929)], plain)
    go(kernels, [(2, 16, 50257), (1, 32, 127)], plain)
    go(kernels, [(2, 5, 32000)], plain, labels=torch.int32)
    before = len(kernels)
    for r, t in ((1, 16), (1, 1), (3, 7), (64, 2000)):
        for ignore in (-100, 0, 1):
            x, y = torch.zeros(r, t), torch.zeros(r, t, dtype=torch.int64)
            launch.sums(x, y, None, r, ignore, True)
            launch.sums(x.view(-1), y.view(-1), y.view(-1), r, ignore, True)
    print(len(kernels) - before)
"""


def test_few_compilations():
    """Numbers of rows and columns, temperatures, scales and indices compile nothing again.

    Two kernels are compiled for each thing that changes the machine code: a softcap, rows that are
    not aligned to 16 bytes (in one dimension or in both), and 32-bit labels. Rewards take three:
    one for padded ones, and two for packed ones.
    """
    assert [int(line) for line in python("-c", COUNT).split()] == [2, 2, 2, 2, 2, 3]


COUNT_PREFERENCE = """
import torch
from pad_fast.kernels.preference import launch
from pad_fast.preference.plackett_luce import RankingOptions
from tools.kernel_resources import only_compile

EVERY = ((10.0, 256, 0), (0.5, 16, 2**40), (1.0, 8, 1))

def go(kernels, *jobs, groups=(1, 5, 512), masked=False, dtype=torch.float32):
    before = len(kernels)
    for kind, method, n in jobs:
        for g in groups:
            for beta, samples, seed in EVERY:
                x = torch.zeros(g * n + 1, dtype=dtype)
                student, teacher = x[g % 2 :][: g * n].view(g, n), x[:-1].view(g, n)
                live = torch.ones(g, n, dtype=torch.bool) if masked else None
                options = RankingOptions(beta, beta, samples, seed)
                launch.forward(student, teacher, live, kind, method, options)
    print(len(kernels) - before)

exact = [(kind, "exact", 4) for kind in ("kl", "jsd", "vpd")]
sizes = [(*job, n) for job in (("vpd", "exact"), ("kl", "sampled")) for n in (5, 7, 8)]
with only_compile("sm_90") as kernels:
    go(kernels, *exact, ("kl", "sampled", 4))
    go(kernels, ("kl", "exact", 4), ("vpd", "exact", 4), masked=True)
    go(kernels, *sizes)
    go(kernels, ("kl", "exact", 3), ("reverse_kl", "exact", 3))
"""


def test_few_compilations_of_the_listwise_losses():
    """Numbers of groups and draws, betas, seeds and alignments compile nothing again.

    A mask does, and so does each n of the exact divergences. ListMLE and the sampled losses compile
    only for each power of two.
    """
    assert [int(line) for line in python("-c", COUNT_PREFERENCE).split()] == [4, 2, 2, 2]
