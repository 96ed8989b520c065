"""The kernels compiled for GPUs that are not here, in the blocks that are launched: resources, widths, number of compilations.

Compilation needs a process in which the interpreter is off, so tools/kernel_resources.py runs in one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).resolve().parents[2]
TABLES = json.loads((Path(__file__).parent / "resources.json").read_text())
MINOR = ".".join(triton.__version__.split(".")[:2])
# Shared memory that a program may have, bytes: CUDA C++ Programming Guide, table of compute capabilities; CDNA 3 has 64 KB of LDS.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# Registers of a multiprocessor (a SIMD of CDNA 3 has 512 a lane) for at least 512 threads at a time; of the product, 256 threads.
REGISTERS = {"sm_80": 128, "sm_90": 128, "sm_100": 128, "gfx942": 256}
PRODUCT = "linear_logprob_fwd"
ROWS = "linear_logprob_rows"
JOIN = "linear_logprob_join"


def python(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, int]]:
    return json.loads(python("tools/kernel_resources.py"))[MINOR]


def test_no_kernel_spills_or_outgrows_its_chip(resources):
    # targets; two kernels in three dtypes, one that keeps scores in two dtypes or not at all, two of the product; each with a softcap
    assert len(resources) == 4 * 2 * (2 * 3 + 3 + 2)
    for name, used in resources.items():
        target = name.split()[0]
        assert used["stack"] == used["spills"] == 0, name
        assert used["shared"] <= SHARED[target], name
        assert used["registers"] <= (255 if PRODUCT in name else REGISTERS[target]), name
        if f"{ROWS} kept" in name and target.startswith("sm_"):  # 1,024 threads: a multiprocessor to itself, or half of it
            assert used["registers"] <= 64, name


def test_the_product_runs_on_tensor_cores(resources):
    """On sm_90 by whole warpgroups, on tiles that descriptors fetch."""
    for name, used in resources.items():
        if PRODUCT in name and name.startswith("sm_90"):
            assert used["wgmma"] > 0, name
            assert used["tma"] > 0, name


def test_logits_move_in_16_bytes(resources):
    for name, used in resources.items():
        if PRODUCT in name or JOIN in name:
            continue
        assert used["load"] == 16, name
        kept = 8 if "kept bf16" in name else 16  # beside 16 bytes of float32 logits
        assert used["store"] == (kept if "bwd" in name or "kept" in name else 4), name  # without, three numbers a row


def test_resources_are_the_recorded_ones(resources):
    for name, used in resources.items():
        print(f"{name:36}", *(f"{key} {value:4}" for key, value in used.items()))
    if MINOR not in TABLES:
        pytest.skip(f"no table is recorded for triton {MINOR}; tools/kernel_resources.py --write records one")
    assert resources == TABLES[MINOR], "changed on purpose? then run tools/kernel_resources.py --write"


@pytest.mark.parametrize("minor", sorted(TABLES))
def test_recorded_tables_are_sound(minor):
    """The table of each supported version of Triton, all compiled from these kernels, has no spill either."""
    assert TABLES[minor].keys() == TABLES[sorted(TABLES)[0]].keys()
    for name, used in TABLES[minor].items():
        assert used["stack"] == used["spills"] == 0, (minor, name)
        assert used.get("wgmma", 1) > 0 or not name.startswith("sm_90"), (minor, name)
        assert used["load"] == 16 or PRODUCT in name or JOIN in name, (minor, name)


COUNT = """
import torch
from pad_fast.kernels.logprob import launch, tuning
from tools.kernel_resources import only_compile

def go(kernels, shapes, *values, dtype=torch.bfloat16, labels=torch.int64):
    before = len(kernels)
    for shape in shapes:
        for temperature, softcap, scale, ignore in values:
            options = (temperature, softcap, scale, ignore)
            x, y = torch.zeros(shape, dtype=dtype), torch.zeros(shape[:2], dtype=labels)
            rows = launch.forward(x, y, *options, tiling=tuning.TILINGS["sm_90"])
            launch.backward(rows[0], x, y, *rows[1:], *options, torch.empty_like(x), tiling=tuning.TILINGS["sm_90"])
    print(len(kernels) - before)

plain = (1.0, 0.0, 1.0, -100)
with only_compile("sm_90") as kernels:
    go(kernels, [(r, t, v) for r, t in ((1, 1), (1, 7), (2, 3), (16, 1), (5, 64)) for v in (32000, 128256)],
       plain, (0.7, 0.0, 2.0, 0), (1.5, 0.0, -1.0, 1))
    go(kernels, [(1, 5, 32000)], (1.0, 30.0, 1.0, -100), (0.5, 50.0, 0.1, -1))
    go(kernels, [(r, t, v) for r, t in ((3, 5), (2, 7), (16, 1)) for v in (50257, 32001, 151929)], plain)
    go(kernels, [(2, 16, 50257), (1, 32, 127)], plain)
    go(kernels, [(2, 5, 32000)], plain, labels=torch.int32)
"""


def test_few_compilations():
    """Two kernels, however many rows, columns, temperatures, scales and indices there are; two more for each thing that changes
    the machine code: a softcap, rows that are not aligned to 16 bytes (in one dimension or in both), 32-bit labels."""
    assert [int(line) for line in python("-c", COUNT).split()] == [2, 2, 2, 2, 2]
