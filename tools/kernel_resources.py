"""Compile the kernels for GPUs that are not here, and report what each compiled kernel uses.

    python tools/kernel_resources.py [--triton DIR] [--targets sm_90 ...] [--cases TEXT]
                                     [--often | --sizes] [--loops] [--write]

``--triton DIR`` takes another Triton, installed there by ``pip install --no-deps
--target DIR triton==3.6.0``. ``--write`` records, for this Triton, with what the tests compare.

The launchers run on CPU tensors, with a driver that names a target and never launches, so that
blocks and specializations are those of launches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from tools import kernel_cases, machine_code  # noqa: E402
from tools.kernel_cases import Case  # noqa: E402
from tools.linear_kernel_cases import linear_cases  # noqa: E402

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
COUNTED = ("sm_90",)  # whose loops are counted: what was timed was timed on such a card


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
    usage = machine_code.cuobjdump(kernel.asm["cubin"], "-res-usage")
    found = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}

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


def counted(kernel) -> dict[str, int | list[int]]:
    """Instructions of a kernel for NVIDIA's GPUs, of each loop of it, and the fewest of a turn."""
    code = machine_code.instructions(kernel.asm["cubin"])
    found = machine_code.loops(code)
    return {
        "instructions": sum(not line.startswith("NOP") for line in code),
        "loops": [all_of_it for all_of_it, _ in found],
        "fewest": [fewest for _, fewest in found],
    }


def table(
    targets: list[str], cases: list[Case], often: bool = False, loops: bool = False
) -> dict[str, dict]:
    """Resources by target, kernel and case: {"sm_90 logprob_fwd bf16": {...}}."""
    rows = {}
    for target in targets:
        for case in cases:
            if often and not _is_compiled_often(case, target):
                continue
            with only_compile(target) as kernels:
                case.launch(target)
            for kernel in kernels:
                used = resources(kernel)
                if loops and target in COUNTED:
                    used |= counted(kernel)
                rows[f"{target} {kernel.name} {case.name}"] = used
    return rows


def every_case() -> list[Case]:
    """All cases but those that ``--sizes`` names."""
    given = kernel_cases.logits_cases() + kernel_cases.response_cases()
    return linear_cases() + given + kernel_cases.preference_cases()


def _is_compiled_often(case: Case, target: str) -> bool:
    """Whether the test command compiles it. The JSD of 10 takes 20 s, for one target."""
    return case.often and not (target in OTHERS and case.name == "jsd exact 10")


def read(path: Path = TABLE) -> dict[str, dict[str, dict]]:
    """The recorded tables by the minor version of Triton."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, tables: dict[str, dict[str, dict]]) -> None:
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
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--often", action="store_true", help="only what the test command compiles")
    which.add_argument(
        "--sizes", action="store_true", help="the exact losses at every number of responses, 20 min"
    )
    parser.add_argument(
        "--loops", action="store_true", help=f"count the instructions of {', '.join(COUNTED)}"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"record it in {TABLE.relative_to(ROOT)}, or with --sizes in {OF_SIZES.name} there",
    )
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel is decorated
    sys.path[:0] = [str(arguments.triton)] * bool(arguments.triton)
    import triton

    minor = ".".join(triton.__version__.split(".")[:2])
    cases = kernel_cases.size_cases() if arguments.sizes else every_case()
    found = table(
        arguments.targets,
        [case for case in cases if arguments.cases in case.name],
        arguments.often,
        loops=arguments.loops or arguments.write,
    )
    print(json.dumps({minor: found}, indent=1))
    if arguments.write:
        path = OF_SIZES if arguments.sizes else TABLE
        known = read(path)
        part = arguments.cases or arguments.often or arguments.targets != list(TARGETS)
        write(path, known | {minor: known.get(minor, {}) | found if part else found})


if __name__ == "__main__":
    main()
