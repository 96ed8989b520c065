"""Compile FlexAttention's kernels for GPUs that are not here, and print their shared memory.

    python tools/attention_memory.py [--targets sm_89 ...] [--heads 256 ...] [--types bf16 ...]

A line for each tile that PyTorch takes by itself, and for another one of
pad_fast/models/flex_tiles.py. PyTorch's templates are filled in here, with the mask of shared
prompts, grouped heads, a window and a softcap, and Triton compiles them until it knows the memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jinja2
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pad_fast.models.flex_tiles import (  # noqa: E402
    BACKWARD,
    FORWARD,
    SM_80,
    SM_86,
    SM_90,
    padded_head,
    tile_options,
)

TEMPLATES = Path(torch.__file__).parent / "_inductor" / "kernel" / "flex" / "templates"
FILES = {
    "forward": ("flex_attention.py.jinja", "utilities.py.jinja", "common.py.jinja"),
    "backward": ("flex_backwards.py.jinja", "utilities.py.jinja"),
}
# Architectures, and the shared memory that one program may take there.
TARGETS = {
    "sm_75": 65_536,
    "sm_80": SM_80,
    "sm_86": SM_86,
    "sm_89": SM_86,
    "sm_90": SM_90,
    "sm_120": SM_86,
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEADS, KEY_HEADS, SOFTCAP, BLOCK = 16, 8, 50.0, 128
LENGTH, BLOCKS = "length", "blocks"  # the sizes that vary
COLUMNS = ("group", "part", "position", "oldest")  # what the mask reads
MASK = """_q, _k = {m}, {n}
_same = (tl.load(group + _q) == tl.load(group + _k))
_part = tl.load(part + _k)
_seen = (_q >= _k) & _same & ((_part == 0) | (tl.load(part + _q) == _part))
{output} = _seen & (tl.load(position + _k) >= tl.load(oldest + _q))"""
CAPPED = "_t = libdevice.tanh(({score}) / {cap})\n"


class Known(BaseException):
    """Ends a compilation whose shared memory is known."""


class Template:
    """PyTorch's template of a kernel, and what it calls while it is filled in."""

    def __init__(self, kernel: str, constants: Mapping[str, Any], head: int):
        self.kernel, self.constants, self.head = kernel, constants, head
        self.arguments: list[str] = []

    def render(self) -> str:
        text = "\n".join(
            (TEMPLATES / name).read_text(encoding="utf-8") for name in FILES[self.kernel]
        )
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        environment.filters["indent_except_first"] = lambda text, depth: text.replace(
            "\n", "\n" + "    " * depth
        )
        names = ("def_kernel", "gen_argdefs", "gen_defines", "size", "stride", "modification")
        calls = {name: getattr(self, name) for name in (*names, "store_output")}
        return environment.from_string(text).render(**calls, USE_TMA=False, HAS_FULL_BLOCKS=True)

    def def_kernel(self, *names: str) -> str:
        self.arguments = [*(f"arg_{name}" for name in names), "out", *COLUMNS, LENGTH, BLOCKS]
        return "\n".join(
            [
                "import triton",
                "import triton.language as tl",
                "from torch._inductor.runtime.triton_helpers import libdevice",
                "@triton.jit",
                f"def kernel({self.gen_argdefs()}):",
                *("    " + line for line in self.gen_defines().splitlines()),
                *(f"    {name} = arg_{name}" for name in names),
            ]
        )

    def gen_argdefs(self) -> str:
        return ", ".join(self.arguments)

    def gen_defines(self) -> str:
        return "\n".join(
            f"{name}: tl.constexpr = {value}" for name, value in self.constants.items()
        )

    def size(self, name: str, place: int) -> str:
        if name.endswith(("BLKS", "IDX")):
            return str((1, 1, BLOCKS, BLOCKS)[place])
        heads = KEY_HEADS if name in ("K", "V", "DV") else HEADS
        return str((1, heads, LENGTH, self.head)[place])

    def stride(self, name: str, place: int | None = None) -> str:
        heads = KEY_HEADS if name in ("K", "V", "DV") else HEADS
        found = [f"({heads} * {LENGTH} * {self.head})", str(self.head), str(heads * self.head), "1"]
        if name.endswith(("BLKS", "IDX")):
            found = [f"({BLOCKS} * {BLOCKS})", f"({BLOCKS} * {BLOCKS})", BLOCKS, "1"]
        return ", ".join(found) if place is None else found[place]

    def modification(self, output_name: str | None, score: str = "", **names: Any) -> str:
        """The softcap, its gradient, or the mask."""
        capped = CAPPED.format(score=score, cap=SOFTCAP)
        if output_name is None:
            return "pass"
        if output_name == "post_mod_scores":
            return f"{capped}post_mod_scores = {SOFTCAP} * _t"
        if output_name == "grad_scores":
            return f"{capped}grad_scores = ({names['grad_score_mod']}) * (1 - _t * _t)"
        return MASK.format(output=output_name, m=names["m"], n=names["n"])

    def store_output(self, places: tuple[str, ...], value: str, mask: str, **_: Any) -> str:
        heads = HEADS if self.kernel == "forward" else KEY_HEADS
        strides = (heads * self.head, self.head, heads * self.head, 1)
        where = " + ".join(f"({x}) * {step}" for x, step in zip(places, strides, strict=True))
        there = f"out + tl.broadcast_to({where}, {value}.shape)"
        return f"tl.store({there}, {value}, mask=tl.broadcast_to({mask}, {value}.shape))"


def constants(kernel: str, head: int, tile: tuple[int, ...]) -> dict[str, Any]:
    """The constants of a kernel, as PyTorch sets them for packed rows of any length."""
    names = FORWARD if kernel == "forward" else BACKWARD
    blocks = {name[4:]: size for name, size in zip(names, tile, strict=True) if "BLOCK" in name}
    rounded = padded_head(head)
    return blocks | {
        **dict.fromkeys(("PRESCALE_QK", "ROWS_GUARANTEED_SAFE", "BLOCKS_ARE_CONTIGUOUS"), False),
        **dict.fromkeys(("OUTPUT_MAX", "USE_TMA", "IS_DIVISIBLE"), False),
        **dict.fromkeys(("WRITE_DQ", "OUTPUT_LOGSUMEXP", "HAS_FULL_BLOCKS"), True),
        **dict.fromkeys(("QK_HEAD_DIM", "V_HEAD_DIM"), head),
        **dict.fromkeys(("QK_HEAD_DIM_ROUNDED", "V_HEAD_DIM_ROUNDED"), rounded),
        **dict.fromkeys(("SPARSE_Q_BLOCK_SIZE", "SPARSE_KV_BLOCK_SIZE"), BLOCK),
        "SAFE_HEAD_DIM": rounded == head,
        "FLOAT32_PRECISION": "'ieee'",
        "SM_SCALE": head**-0.5,
        "GQA_SHARED_HEADS": HEADS // KEY_HEADS,
        "INDEX_DTYPE": "tl.int32",
    }


def shared_bytes(kernel: str, target: str, head: int, kind: str, tile: tuple[int, ...]) -> int:
    """The shared memory of a kernel.

    Args:
        kernel: "forward" or "backward".
        target: an architecture, such as "sm_89".
        head: the size of a head.
        kind: "bf16", "fp16" or "fp32".
        tile: the numbers of the kernel's options.

    Returns:
        Bytes.
    """
    template = Template(kernel, constants(kernel, head, tile), head)

    def stop(self: Any, source: Any, metadata: dict[str, Any], *_: Any) -> None:
        raise Known(metadata["shared"])

    with tempfile.TemporaryDirectory() as folder, patch.object(CUDABackend, "make_ptx", stop):
        path = Path(folder) / "kernel.py"
        path.write_text(template.render(), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        aligned = {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(template.arguments)
            if name not in (LENGTH, BLOCKS)
        }
        signature = {name: _type(name, kind) for name in template.arguments}
        source = ASTSource(module.kernel, signature, attrs=aligned)
        options = dict(zip(("num_stages", "num_warps"), tile[-2:], strict=True))
        try:
            compile_kernel(source, target=GPUTarget("cuda", int(target[3:]), 32), options=options)
        except Known as known:
            return int(known.args[0])
    raise AssertionError("Triton did not reach the code of the GPU")


def _type(name: str, kind: str) -> str:
    """The type of a kernel's argument, as Triton writes it."""
    if name in (LENGTH, BLOCKS):
        return "i64"
    if name in COLUMNS or name.endswith(("BLKS", "IDX")):
        return "*i32"
    return "*fp32" if name in ("arg_LSE", "arg_MAX", "arg_DELTA") else f"*{kind}"


def own_tiles(target: str, head: int, kind: str) -> dict[str, tuple[int, ...]]:
    """The tiles that PyTorch takes by itself."""
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    number, choose = int(target[3:]), CUDAConfigHeuristic()
    with patch("torch.cuda.get_device_capability", lambda *_: divmod(number, 10)):
        forward = choose.get_flex_attn_fwd_configs(head, TYPES[kind])[-1]
        back = choose.get_flex_attn_bwd_configs(head, TYPES[kind])[-1]
    blocks = (back.block_m1, back.block_n1, back.block_m2, back.block_n2)
    return {
        "forward": (forward.block_m, forward.block_n, forward.num_stages, forward.num_warps),
        "backward": (*blocks, back.num_stages, back.num_warps),
    }


def taken_tiles(target: str, head: int, kind: str) -> dict[str, tuple[int, ...]]:
    """The tiles that pad-fast asks for; a kernel that takes PyTorch's own is left out."""
    options = tile_options(head, TYPES[kind], TARGETS[target])
    found = {
        kernel: tuple(int(number) for name, number in options if name in names)
        for kernel, names in (("forward", FORWARD), ("backward", BACKWARD))
    }
    return {kernel: tile for kernel, tile in found.items() if tile}


def lines(target: str, head: int, kind: str) -> Iterator[str]:
    """A line for each kernel with PyTorch's tile, and one with ours where it is another."""
    limit = TARGETS[target]
    own, ours = own_tiles(target, head, kind), taken_tiles(target, head, kind)
    for kernel in FILES:
        chosen = {"PyTorch's": own[kernel]}
        if ours.get(kernel, own[kernel]) != own[kernel]:
            chosen["ours"] = ours[kernel]
        for whose, tile in chosen.items():
            size = shared_bytes(kernel, target, head, kind, tile)
            fits = "fits" if size <= limit else f"exceeds {limit:,}"
            yield f"{target} {kind} {head} {kernel} {whose} {tile}: {size:,} bytes, {fits}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--heads", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--types", nargs="+", choices=TYPES, default=["bf16", "fp32"])
    args = parser.parse_args()
    for head in args.heads:
        for kind in args.types:
            for target in args.targets:
                for line in lines(target, head, kind):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
