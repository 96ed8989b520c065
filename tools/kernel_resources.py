"""Compile the kernels for GPUs that are not here, and report what each compiled kernel uses.

    python tools/kernel_resources.py [--triton DIR] [--targets sm_90 ...] [--cases TEXT] [--sizes]
                                     [--write]

``--triton DIR`` takes another Triton, installed there by ``pip install --no-deps
--target DIR triton==3.6.0``. ``--write`` records the table with which the tests compare.

The launchers run on CPU tensors, with a driver that names a target and never launches, so that the
same blocks and specializations are compiled as would be launched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "kernels" / "resources.json"
OF_SIZES = TABLE.with_name("resources_of_sizes.json")
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Architectures without an entry of their own in the tuning tables, which are not recorded.
OTHERS = {
    "sm_75": ("cuda", 75, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx90a": ("hip", "gfx90a", 64),
    "gfx950": ("hip", "gfx950", 64),
}
EVERY = TARGETS | OTHERS
CAPS = (("", 0.0), (" softcap", 30.0))
# A name, and a function that launches once on the named architecture.
Case = tuple[str, Callable[[str], None]]


class OnlyCompile:
    """A driver that answers which device there is, and launches nothing."""

    def __init__(self, name: str):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(*EVERY[name])
        self.device = list(EVERY).index(name)  # Triton keeps compiled kernels by device

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def only_compile(name: str) -> Iterator[list]:
    """Inside, launches only compile for ``name``. Yields the list of compiled kernels."""
    from triton.runtime import driver, jit

    run, kernels, seen = jit.JITFunction.run, [], set()

    def compile_alone(self, *args, grid, warmup=False, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if id(kernel) not in seen:  # a cached kernel is the same object
            seen.add(id(kernel))
            kernels.append(kernel)
        return kernel

    driver.set_active(OnlyCompile(name))
    jit.JITFunction.run = compile_alone
    try:
        yield kernels
    finally:
        jit.JITFunction.run = run
        driver._active = None


def logprob_cases() -> list[Case]:
    """logprob_fwd and logprob_bwd, for each dtype of logits and with a softcap."""
    from pad_fast.kernels.common.device import nearest
    from pad_fast.kernels.logprob import launch, tuning

    from pad_fast.logprob.softmax import TokenOptions

    def case(dtype, softcap: float, vocabulary: int = 32768, labels_dtype=torch.int64):
        def go(name: str) -> None:
            logits = torch.zeros(1, 2, vocabulary, dtype=dtype)
            labels = torch.zeros(1, 2, dtype=labels_dtype)
            options = TokenOptions(softcap=softcap)
            tiling = nearest(tuning.TILINGS, name).of(softcap)
            logp, peak, total = launch.forward(logits, labels, options, tiling=tiling)
            written = torch.empty_like(logits)
            softmax = (peak, total)
            launch.backward(logp, logits, labels, softmax, options, written, tiling=tiling)

        return go

    dtypes = {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
        "fp64": torch.float64,
    }
    cases = [
        (f"{short}{cap}", case(dtype, softcap))
        for short, dtype in dtypes.items()
        for cap, softcap in CAPS
    ]
    # Rows that do not start at multiples of 16 bytes.
    cases += [(f"bf16 V=50257{cap}", case(torch.bfloat16, softcap, 50257)) for cap, softcap in CAPS]
    return [*cases, ("bf16 int32", case(torch.bfloat16, 0.0, labels_dtype=torch.int32))]


def response_cases() -> list[Case]:
    """The kernels of response rewards, padded and packed."""
    from pad_fast.kernels.logprob import launch

    def case(dtype, packed: bool) -> Callable[[str], None]:
        def go(name: str) -> None:
            logps, labels = torch.zeros(2, 512, dtype=dtype), torch.zeros(2, 512, dtype=torch.int64)
            rows = (logps.view(-1), labels.view(-1), labels.view(-1))
            launch.sums(*(rows if packed else (logps, labels, None)), 2, -100, mean=True)

        return go

    return [
        (f"{short} {name}", case(dtype, packed))
        for short, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
        for name, packed in (("padded", False), ("packed", True))
    ]


def _loss_case(kind: str, method: str, n: int, masked: bool = True) -> Callable[[str], None]:
    """A listwise loss; ``masked`` exact ones have a mask and lengths, drawn ones lengths."""

    def go(name: str) -> None:
        from pad_fast.kernels.preference import launch

        from pad_fast.preference.plackett_luce import RankingOptions

        live = torch.ones(2, n, dtype=torch.bool) if masked and method == "exact" else None
        rewards, lengths = torch.zeros(2, n), torch.ones(2, n, dtype=torch.int64)
        options = RankingOptions(10.0, 10.0, num_samples=256, seed=0)
        filled = lengths if masked else None
        wide = name.startswith("gfx")
        launch.forward(rewards, rewards, live, kind, method, options, wide, filled)

    return go


def size_cases() -> list[Case]:
    """The exact divergences at every number of responses, with masks ("") and without any."""
    from pad_fast.kernels.preference.limits import EXACT

    return [
        (f"{kind} exact {n}{form}", _loss_case(kind, "exact", n, masked=not form))
        for kind, most in EXACT.items()
        for n in range(2, 1 + (most or 0))
        for form in ("", " alone")
    ]


def preference_cases() -> list[Case]:
    """The listwise kernels, in sizes whose forms and numbers of registers differ."""
    from pad_fast.kernels.preference import launch

    def mean(n: int) -> Callable[[str], None]:
        def go(name: str) -> None:
            lengths = torch.ones(2, n, dtype=torch.int64)
            wide = name.startswith("gfx")
            launch.reduce(torch.zeros(2), lengths > 0, lengths, n, True, wide)

        return go

    sizes = {
        "exact": {
            "kl": (8, 10, 11, 12),
            "reverse_kl": (8, 10, 11, 12),
            "jsd": (8, 10),
            "vpd": (8, 200),
        },
        "sampled": {"kl": (16,), "reverse_kl": (16,), "jsd": (16, 32)},
    }
    cases = [
        (f"{kind} {method} {n}", _loss_case(kind, method, n))
        for method, kinds in sizes.items()
        for kind, numbers in kinds.items()
        for n in numbers
    ]
    return [*cases, ("mean 8", mean(8)), ("mean 200", mean(200))]


def linear_cases() -> list[Case]:
    """The kernels of hidden states times the head, in every branch that a call can reach.

    "kept" writes d log p / d logits in the named dtype, "tile" those of logits computed again, and
    "alone" does not. Other names are of the product without logits. "odd" is a vocabulary that 16
    does not divide, in padded rows, or a width whose rows do not start at multiples of 16 bytes.
    """
    short = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    cases: list[Case] = []
    for cap, softcap in CAPS:
        for name, dtype in {**short, "fp64": torch.float64}.items():
            cases.append((f"kept {name}{cap}", _row_case(softcap, dtype)))
            cases.append((f"tile {name}{cap}", _tile_case(softcap, dtype)))
        cases += [
            (f"alone{cap}", _row_case(softcap)),
            (f"alone bias{cap}", _row_case(softcap, bias=True)),
            (f"kept bf16 bias{cap}", _row_case(softcap, torch.bfloat16, bias=True)),
            (f"kept bf16 odd{cap}", _row_case(softcap, torch.bfloat16, columns=50257)),
            (f"tile bf16 odd{cap}", _tile_case(softcap, torch.bfloat16, columns=1105)),
        ]
        for name, dtype in short.items():
            cases += [
                (f"{name}{cap}", _fused_case(softcap, dtype)),
                (f"{name} bias{cap}", _fused_case(softcap, dtype, bias=True)),
                (f"{name} odd{cap}", _fused_case(softcap, dtype, width=123)),
                (f"{name} odd bias{cap}", _fused_case(softcap, dtype, bias=True, width=123)),
            ]
    return cases


def _row_case(
    softcap: float, dtype: torch.dtype | None = None, bias: bool = False, columns: int = 32768
) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch, tuning

        from pad_fast.linear_logprob.memory_budget import padded
        from pad_fast.logprob.softmax import TokenOptions, accumulator

        wide = accumulator(dtype or torch.float32)
        labels, *found = torch.zeros(1, 2, dtype=torch.int64)[0], *torch.zeros(3, 2, dtype=wide)
        kept = None if dtype is None else torch.zeros(2, padded(columns), dtype=dtype)
        launch.rows(
            torch.zeros(2, padded(columns), dtype=wide)[:, :columns],
            torch.zeros(columns, dtype=dtype) if bias else None,
            labels,
            None if kept is None else kept[:, :columns],
            tuple(found),
            TokenOptions(softcap=softcap),
            tiling=nearest(tuning.ROWS, name).of(wide, softcap),
        )

    return go


def _tile_case(softcap: float, dtype: torch.dtype, columns: int = 8192) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch
        from pad_fast.kernels.logprob import launch as logprob_launch
        from pad_fast.kernels.logprob import tuning

        from pad_fast.linear_logprob.head import empty_rows
        from pad_fast.logprob.softmax import TokenOptions, accumulator

        wide = accumulator(dtype)
        logits, written = (
            empty_rows(torch.empty(0), 2, columns, kind).zero_() for kind in (wide, dtype)
        )
        labels, rows = torch.zeros(2, dtype=torch.int64), torch.ones(3, 2, dtype=wide)
        tilings = nearest(tuning.TILINGS, name)
        with patch.object(logprob_launch, "tilings_of", lambda device: tilings):
            launch.tile(logits, labels, *rows, 0, written, TokenOptions(softcap=softcap))

    return go


def _fused_case(
    softcap: float, dtype: torch.dtype, bias: bool = False, width: int = 256
) -> Callable[[str], None]:
    def go(name: str) -> None:
        from pad_fast.kernels.common.device import nearest
        from pad_fast.kernels.linear_logprob import launch, tuning

        from pad_fast.logprob.softmax import TokenOptions

        factors = (torch.zeros(rows, width, dtype=dtype) for rows in (2, 32768))
        added = torch.zeros(32768, dtype=dtype) if bias else None
        labels, tilings = torch.zeros(2, dtype=torch.int64), nearest(tuning.SCORING, name)
        launch.score(*factors, added, labels, TokenOptions(softcap=softcap), tilings=tilings)

    return go


def resources(kernel) -> dict[str, int]:
    """What a compiled kernel uses.

    Registers and spills are those of a thread, shared memory is that of a program, and the widest
    global load and store are in bytes.
    """
    if "cubin" in kernel.asm:
        return _nvidia(kernel)
    text = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])

    def widest(what: str) -> int:
        words = re.findall(rf"(?:global|buffer)_{what}_dword(?:x(\d))?\b", text)
        halves = re.findall(rf"(?:global|buffer)_{what}_u?short", text)
        return max((4 * int(n or 1) for n in words), default=2 if halves else 0)

    return {
        "registers": field("vgpr_count"),
        "stack": field("private_segment_fixed_size"),
        "spills": field("vgpr_spill_count"),
        "shared": kernel.metadata.shared,
        "threads": _threads(kernel),
        "load": widest("load"),
        "store": widest("store"),
    }


def _threads(kernel) -> int:
    return kernel.metadata.num_warps * kernel.metadata.target.warp_size


def _nvidia(kernel) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = {
        name: int(n)
        for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr)
    }

    def widest(what: str) -> int:
        sizes = re.findall(rf"\b{what}\.global\S*?(?:\.v(\d))?\.b(\d+)", kernel.asm["ptx"])
        return max((int(n or 1) * int(bits) // 8 for n, bits in sizes), default=0)

    used = {
        "registers": found["REG"],
        "stack": found["STACK"],
        "spills": found["LOCAL"],
        "shared": kernel.metadata.shared,
        "threads": _threads(kernel),
        "load": widest("ld"),
        "store": widest("st"),
    }
    if kernel.name == "linear_logprob_fwd":
        used["wgmma"] = len(re.findall(r"\bwgmma\.mma_async", kernel.asm["ptx"]))
        used["tma"] = len(re.findall(r"\bcp\.async\.bulk\.tensor", kernel.asm["ptx"]))
    return used


def table(targets: list[str], text: str = "", sizes: bool = False) -> dict[str, dict[str, int]]:
    """Resources by target, kernel and case: {"sm_90 logprob_fwd bf16": {...}}."""
    rows = {}
    for target in targets:
        for name, go in size_cases() if sizes else cases_of(target):
            if text not in name:
                continue
            with only_compile(target) as kernels:
                go(target)
            rows |= {f"{target} {kernel.name} {name}": resources(kernel) for kernel in kernels}
    return rows


def cases_of(target: str) -> list[Case]:
    """All cases; of the other architectures those whose tiles follow from tuning tables."""
    tiled = linear_cases() + logprob_cases()
    return tiled if target in OTHERS else tiled + response_cases() + preference_cases()


def read(path: Path = TABLE) -> dict[str, dict[str, dict[str, int]]]:
    """The recorded tables by the minor version of Triton."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, tables: dict[str, dict[str, dict[str, int]]]) -> None:
    """Record tables, with a line for each kernel, so that a diff shows which kernel changed."""
    blocks = (
        f' "{version}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in tables[version].items())
        + "\n }"
        for version in sorted(tables)
    )
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="folder of another version of triton"
    )
    parser.add_argument("--targets", nargs="+", choices=EVERY, default=list(TARGETS))
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those with this text")
    parser.add_argument(
        "--sizes", action="store_true", help="the exact losses at every number of responses, 20 min"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"record it in {TABLE.relative_to(ROOT)}, or with --sizes in {OF_SIZES.name} there",
    )
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated
    sys.path[:0] = [str(arguments.triton)] * bool(arguments.triton) + [str(ROOT)]
    import triton

    minor = ".".join(triton.__version__.split(".")[:2])
    found = table(arguments.targets, arguments.cases, arguments.sizes)
    print(json.dumps({minor: found}, indent=1))
    if arguments.write:
        path = OF_SIZES if arguments.sizes else TABLE
        known = read(path)
        whole = not arguments.cases and arguments.targets == list(TARGETS)
        write(path, known | {minor: found if whole else known.get(minor, {}) | found})


if __name__ == "__main__":
    main()
