"""Compile the kernels for GPUs that are not here, and tell what each product uses.

    python tools/kernel_resources.py [--triton DIR] [--targets sm_90 ...] [--write]

The launchers run on CPU tensors with a driver that names a target and never launches, so that what is compiled is what would
be launched: the same blocks, the same specialisation on strides and alignment. ``--triton DIR`` takes another version, put
there by ``pip install --no-deps --target DIR triton==3.6.0``; no other torch is needed. ``--write`` records the version's
table, which the tests compare with.
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

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "kernels" / "resources.json"
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
CAPS = (("", 0.0), (" softcap", 30.0))
Case = tuple[str, Callable[[str], None]]  # a name, and what launches once on the named architecture


class OnlyCompile:
    """What Triton asks of a driver until the launch: which device, and what it is."""

    def __init__(self, name: str):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(*TARGETS[name])
        self.device = list(TARGETS).index(name)  # compiled kernels are kept by device

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def only_compile(name: str) -> Iterator[list]:
    """Launches compile for ``name`` and no more; yields the list of compiled kernels, one an actual compilation."""
    from triton.runtime import driver, jit

    run, kernels, seen = jit.JITFunction.run, [], set()

    def compile_alone(self, *args, grid, warmup=False, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if id(kernel) not in seen:  # a kernel that is cached is the same object
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
    import torch
    from pad_fast.kernels.logprob import launch, tuning

    def case(
        dtype, softcap: float, vocabulary: int = 32768, labels_dtype=torch.int64
    ) -> Callable[[str], None]:
        def go(name: str) -> None:
            logits, labels = (
                torch.zeros(1, 2, vocabulary, dtype=dtype),
                torch.zeros(1, 2, dtype=labels_dtype),
            )
            options = (1.0, softcap, 1.0, -100)
            rows = launch.forward(logits, labels, *options, tiling=tuning.TILINGS[name])
            launch.backward(
                rows[0],
                logits,
                labels,
                *rows[1:],
                *options,
                torch.empty_like(logits),
                tiling=tuning.TILINGS[name],
            )

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
    cases += [
        (f"bf16 V=50257{cap}", case(torch.bfloat16, softcap, 50257)) for cap, softcap in CAPS
    ]  # rows off the grid of 16 bytes
    return [*cases, ("bf16 int32", case(torch.bfloat16, 0.0, labels_dtype=torch.int32))]


def response_cases() -> list[Case]:
    import torch
    from pad_fast.kernels.logprob import launch

    def case(dtype, packed: bool) -> Callable[[str], None]:
        def go(name: str) -> None:
            logps, labels = torch.zeros(2, 512, dtype=dtype), torch.zeros(2, 512, dtype=torch.int64)
            arguments = (
                (logps.view(-1), labels.view(-1), labels.view(-1))
                if packed
                else (logps, labels, None)
            )
            launch.sums(*arguments, 2, -100, mean=True)

        return go

    shapes = (("padded", False), ("packed", True))
    dtypes = (("fp32", torch.float32), ("fp64", torch.float64))
    return [
        (f"{short} {name}", case(dtype, packed))
        for short, dtype in dtypes
        for name, packed in shapes
    ]


def preference_cases() -> list[Case]:
    import torch
    from pad_fast.kernels.preference import launch

    from pad_fast.preference.plackett_luce import RankingOptions

    def case(kind: str, method: str, n: int, masked: bool) -> Callable[[str], None]:
        def go(name: str) -> None:
            live = torch.ones(2, n, dtype=torch.bool) if masked else None
            launch.forward(
                torch.zeros(2, n),
                torch.zeros(2, n),
                live,
                kind,
                method,
                RankingOptions(10.0, 10.0, num_samples=256, seed=0),
                wide=name.startswith("gfx"),
            )

        return go

    exact = {
        "kl": (8, 10, 11, 12),
        "reverse_kl": (8, 11, 12),
        "jsd": (8, 10),
        "vpd": (8, 200),
    }  # forms and register counts that differ
    sampled = {"kl": (16,), "reverse_kl": (16,), "jsd": (16, 32)}
    jobs = [
        (kind, method, n)
        for method, of in (("exact", exact), ("sampled", sampled))
        for kind, sizes in of.items()
        for n in sizes
    ]
    return [
        (f"{kind} {method} {n}", case(kind, method, n, masked=method == "exact"))
        for kind, method, n in jobs
    ]


def linear_cases() -> list[Case]:
    import torch
    from pad_fast.kernels.linear_logprob import launch, tuning

    rows, columns, width = 2, 32768, 256

    def case(dtype, softcap: float, what: str) -> Callable[[str], None]:
        options, labels = (1.0, softcap, 1.0), torch.zeros(rows, dtype=torch.int64)

        def go(name: str) -> None:
            if what == "fused":
                hidden, weight = (
                    torch.zeros(rows, width, dtype=dtype),
                    torch.zeros(columns, width, dtype=dtype),
                )
                launch.score(hidden, weight, None, labels, *options, tiling=tuning.SCORING[name])
                return
            scores = torch.zeros(rows, columns, dtype=dtype) if what == "kept" else None
            numbers = (torch.zeros(rows), torch.zeros(rows), torch.zeros(rows))
            launch.rows(
                torch.zeros(rows, columns),
                None,
                labels,
                scores,
                numbers,
                *options,
                tiling=tuning.ROWS[name],
            )

        return go

    bf16, fp32 = torch.bfloat16, torch.float32
    kinds = {
        "kept bf16": (bf16, "kept"),
        "kept fp32": (fp32, "kept"),
        "alone": (fp32, "alone"),
        "bf16": (bf16, "fused"),
    }
    return [
        (f"{name}{' softcap' if softcap else ''}", case(dtype, softcap, what))
        for name, (dtype, what) in kinds.items()
        for softcap in (0.0, 30.0)
    ]


def resources(kernel) -> dict[str, int]:
    """Registers and spills of a thread, shared memory of a program, and the widest global load and store in bytes."""
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
        "registers": field("vgpr_count"), "stack": field("private_segment_fixed_size"), "spills": field("vgpr_spill_count"),
        "shared": kernel.metadata.shared, "load": widest("load"), "store": widest("store"),
    }  # fmt: skip


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
        "registers": found["REG"], "stack": found["STACK"], "spills": found["LOCAL"], "shared": kernel.metadata.shared,
        "load": widest("ld"), "store": widest("st"),
    }  # fmt: skip
    if kernel.name == "linear_logprob_fwd":
        used["wgmma"] = len(re.findall(r"\bwgmma\.mma_async", kernel.asm["ptx"]))
        used["tma"] = len(re.findall(r"\bcp\.async\.bulk\.tensor", kernel.asm["ptx"]))
    return used


def table(targets: list[str]) -> dict[str, dict[str, int]]:
    """{"sm_90 logprob_fwd bf16": resources}."""
    rows = {}
    for target in targets:
        for name, go in logprob_cases() + response_cases() + linear_cases() + preference_cases():
            with only_compile(target) as kernels:
                go(target)
            rows |= {f"{target} {kernel.name} {name}": resources(kernel) for kernel in kernels}
    return rows


def read() -> dict[str, dict[str, dict[str, int]]]:
    """The recorded tables, by minor version of triton."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def write(tables: dict[str, dict[str, dict[str, int]]]) -> None:
    """One line a kernel, so that a change shows as one."""
    blocks = (
        f' "{version}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in tables[version].items())
        + "\n }"
        for version in sorted(tables)
    )
    TABLE.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="folder of another version of triton"
    )
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--write", action="store_true", help=f"record the table in {TABLE.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated
    sys.path[:0] = [str(arguments.triton)] * bool(arguments.triton) + [str(ROOT)]
    import triton

    minor = ".".join(triton.__version__.split(".")[:2])
    answer = {minor: table(arguments.targets)}
    print(json.dumps(answer, indent=1))
    if arguments.write:
        write({**read(), **answer})


if __name__ == "__main__":
    main()
