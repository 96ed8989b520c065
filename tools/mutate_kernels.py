"""Break the kernels on purpose and record which test sees it.

    python tools/mutate_kernels.py [--only NAME ...] [--write]

Each mutant is one replacement in a copy of the sources, against which the interpreter's tests run until one fails. ``--write``
records the answers in tests/kernels/mutants.json. A mutant that survives is a test that is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "kernels" / "mutants.json"
SUITE, RESPONSES_SUITE = "tests/kernels/test_logprob.py", "tests/kernels/test_responses.py"
LISTWISE = "tests/kernels/test_preference.py"
LINEAR_SUITE = "tests/kernels/test_linear_logprob.py"


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    suite: str = SUITE
    only: str = (
        ""  # pytest's -k: the tests that are meant to see it, where the whole suite takes long
    )


FORWARD, BACKWARD = "kernels/logprob/forward.py", "kernels/logprob/backward.py"
NUMERICS, OPS, RESPONSES = (
    "kernels/common/numerics.py",
    "pad_fast/logprob/response_op.py",
    "kernels/logprob/responses.py",
)
ROWS, SCORING = "kernels/linear_logprob/scores.py", "kernels/linear_logprob/fused.py"
LINEAR = "pad_fast/linear_logprob/backward.py"
MUTANTS = {
    "forward: a dropped mask": Mutant(FORWARD, 'tl.where(live, w, float("-inf"))', "w"),
    "forward: off by one tile": Mutant(
        FORWARD, "range(0, whole, BLOCK_V)", "range(BLOCK_V, whole, BLOCK_V)"
    ),
    "forward: wrong scale": Mutant(FORWARD, "below * LN_2 if CAPPED else below", "below"),
    "forward: an unread tail": Mutant(FORWARD, "if whole < vocabulary:", "if whole > vocabulary:"),
    "forward: bfloat16 accumulation": Mutant(
        FORWARD,
        "return higher, total * power(peak - higher, CAPPED)",
        "return higher, total.to(tl.bfloat16).to(tl.float32) * power(peak - higher, CAPPED)",
    ),
    "forward: no rescaling": Mutant(FORWARD, "total * power(peak - higher, CAPPED)", "total"),
    "forward: ignored rows are read": Mutant(
        FORWARD, "if label == ignore_index:", "if label == ignore_index - 1:"
    ),
    "forward: nothing written for ignored rows": Mutant(
        FORWARD, "tl.store(logp_ptr + row, 0.0)", "tl.store(logp_ptr + row, 0.0, mask=row < 0)"
    ),
    "forward: 32-bit row": Mutant(
        FORWARD,
        "(row // tokens) * stride_r",
        "((row // tokens).to(tl.int32) * stride_r.to(tl.int32)).to(tl.int64)",
    ),
    "forward: label not masked": Mutant(
        FORWARD, "mask=(place >= 0) & (place < vocabulary)", "mask=place >= -1"
    ),
    "forward: 32-bit tile": Mutant(FORWARD, "tl.full((), BLOCK_V, tl.int64)", "BLOCK_V"),
    "forward: maximum starts too high": Mutant(
        FORWARD, "tl.constexpr(-3.4028234663852886e38)", "tl.constexpr(-1.0e4)"
    ),
    "forward: total of no column": Mutant(
        FORWARD, 'tl.where((label >= 0) & (label < vocabulary), sums, float("nan"))', "sums"
    ),
    "backward: a dropped mask": Mutant(
        BACKWARD,
        "d.to(dlogits_ptr.dtype.element_ty), mask=live)",
        "d.to(dlogits_ptr.dtype.element_ty), mask=live | (offsets < 8))",
    ),
    "backward: off by one tile": Mutant(
        BACKWARD, "x = tl.load(tile_ptr + steps)", "x = tl.load(tile_ptr + steps + stride_v)"
    ),
    "backward: wrong scale": Mutant(
        BACKWARD, "grad * (inner * (outer * LN_2)) if CAPPED", "grad * inner * outer if CAPPED"
    ),
    "backward: an unwritten tail": Mutant(
        BACKWARD, "    if whole < last:\n        live", "    if whole > last:\n        live"
    ),
    "backward: bfloat16 accumulation": Mutant(
        BACKWARD,
        "rest = own / tl.load(total_ptr + row)",
        "rest = (own / tl.load(total_ptr + row)).to(tl.bfloat16).to(ACC)",
    ),
    "backward: no slope of the softcap": Mutant(BACKWARD, "d *= s * (2.0 - s)", "d *= 1.0"),
    "backward: slope of a saturated score": Mutant(
        BACKWARD, "s = (outer - tl.abs(w)) * (1.0 / outer)", "s = 1.0 - tl.abs(w) * (1.0 / outer)"
    ),
    "backward: 32-bit tile": Mutant(BACKWARD, "tl.full((), BLOCK_V, tl.int64)", "BLOCK_V"),
    "backward: 32-bit first": Mutant(BACKWARD, "first.to(tl.int64) * stride_v", "first * stride_v"),
    "backward: 32-bit first, written": Mutant(
        BACKWARD, "first.to(tl.int64) * dstride_v", "first * dstride_v"
    ),
    "backward: 16-bit first": Mutant(
        BACKWARD, "first.to(tl.int64) * stride_v", "first.to(tl.int16) * stride_v"
    ),
    "backward: zero rows are not written": Mutant(
        BACKWARD,
        "tl.store(out_ptr + dsteps, zeros)",
        "tl.store(out_ptr + dsteps, zeros, mask=offsets < 0)",
    ),
    "backward: zero rows lack their tail": Mutant(
        BACKWARD,
        "mask=whole + offsets < last)\n        return",
        "mask=offsets < 0)\n        return",
    ),
    "backward: zero gradients are read": Mutant(
        BACKWARD, "(label == ignore_index) | (grad == 0.0)", "label == ignore_index"
    ),
    "backward: no onehot": Mutant(BACKWARD, "tl.where(offsets == place, own + d, d)", "d"),
    "tanh: polynomial beyond its range": Mutant(
        NUMERICS, "t = tl.where(tl.abs(q) > 1.0,", "t = tl.where(tl.abs(q) > 1.2,"
    ),
    "tanh: tile takes the wrong branch": Mutant(NUMERICS, "if reach > 1.0:", "if reach > 4.0:"),
    "tanh: a negative scale": Mutant(NUMERICS, "* tl.abs(inner)", "* inner"),
    "tanh: a coefficient": Mutant(NUMERICS, "0.13325204075825553", "0.1332420407582555"),
    "sums: in the order of the layout": Mutant(
        NUMERICS,
        "(x.shape[0], 2, x.shape[1] // 2)), axis=1",
        "(x.shape[0], x.shape[1] // 2, 2)), axis=1",
    ),
    "responses: not on the grid": Mutant(
        OPS, "(logps.double() / STEP).round_() * STEP", "logps.double()", RESPONSES_SUITE
    ),
    "responses: kernels not on the grid": Mutant(
        RESPONSES, "((wide * (1.0 / STEP) + SHIFT) - SHIFT) * STEP", "wide", RESPONSES_SUITE
    ),
    "responses: a dropped mask": Mutant(
        RESPONSES, "own = first + columns < rows", "own = first + columns <= rows", RESPONSES_SUITE
    ),
    "responses: off by one block": Mutant(
        RESPONSES, "range(0, rows, BLOCK)", "range(BLOCK, rows, BLOCK)", RESPONSES_SUITE
    ),
    "responses: wrong scale": Mutant(
        RESPONSES, "tl.maximum(count, 1)", "tl.maximum(count, 2)", RESPONSES_SUITE
    ),
    "responses: float32 accumulation": Mutant(
        RESPONSES, "tl.sum(total, 0)", "tl.sum(total.to(tl.float32), 0)", RESPONSES_SUITE
    ),
    "responses: lengths not written": Mutant(
        RESPONSES,
        "tl.store(lengths_ptr + response, count)",
        "tl.store(lengths_ptr + response, count, mask=response < 0)",
        RESPONSES_SUITE,
    ),
    "responses: the first is left out": Mutant(
        RESPONSES, "own = (ids >= 0)", "own = (ids > 0)", RESPONSES_SUITE
    ),
    "responses: ignored tokens are counted": Mutant(
        RESPONSES, "mask=own & (labels != ignore_index)", "mask=own", RESPONSES_SUITE
    ),
    "responses: ids past the last are silent": Mutant(
        RESPONSES, "mask=ids >= responses", "mask=ids < -1", RESPONSES_SUITE
    ),
}

# All of them are looked for by one suite.
HEAD_MUTANTS = {
    "rows: a dropped mask": Mutant(ROWS, 'tl.where(live, w, float("-inf"))', "w"),
    "rows: off by one tile": Mutant(
        ROWS, "range(0, whole, BLOCK_V):\n        x", "range(BLOCK_V, whole, BLOCK_V):\n        x"
    ),
    "rows: wrong scale": Mutant(
        ROWS, "slope = inner * (outer * LN_2) if CAPPED", "slope = inner * outer if CAPPED"
    ),
    "rows: an unread tail": Mutant(
        ROWS, "if whole < vocabulary:\n        w", "if whole > vocabulary:\n        w"
    ),
    "rows: bfloat16 accumulation": Mutant(
        ROWS, "rest = slope / sums", "rest = (slope / sums).to(tl.bfloat16).to(ACC)"
    ),
    "rows: scores without their first tile": Mutant(
        ROWS, "range(BLOCK_V, whole + BLOCK_V, BLOCK_V)", "range(BLOCK_V, whole, BLOCK_V)"
    ),
    "rows: no bias in the tail": Mutant(
        ROWS, "x += tl.load(bias_ptr + offsets, mask=live, other=0.0).to(x.dtype)", "x += 0.0"
    ),
    "rows: broken rows keep their scores": Mutant(ROWS, "if sums != sums:", "if sums < 0.0:"),
    "fused: a dropped mask": Mutant(
        SCORING, 'tl.where((columns < vocabulary)[None, :], z, float("-inf"))', "z"
    ),
    "fused: off by one tile": Mutant(
        SCORING, "range(0, width, BLOCK_K)", "range(BLOCK_K, width + BLOCK_K, BLOCK_K)"
    ),
    "fused: wrong scale": Mutant(SCORING, "below * LN_2 if CAPPED else below", "below"),
    "fused: an unread tail": Mutant(
        SCORING,
        "tl.minimum((split + 1) * part, vocabulary)",
        "tl.minimum((split + 1) * part, vocabulary - 1)",
    ),
    "fused: float16 accumulation": Mutant(
        SCORING,
        "total = total * power(peak - higher, CAPPED)",
        "total = total.to(tl.float16).to(ACC) * power(peak - higher, CAPPED)",
    ),
    "fused: a label beyond the vocabulary": Mutant(
        SCORING, "tl.where(label < vocabulary, label, -1)", "label"
    ),
    "fused: depth not masked": Mutant(
        SCORING, "& (columns < width)[None, :]", "& (columns < width + 1)[None, :]"
    ),
    "join: not rescaled": Mutant(SCORING, "other=0.0) * power(peak - top, CAPPED)", "other=0.0)"),
    "join: a part left out": Mutant(
        SCORING,
        "for split in tl.static_range(SPLITS):",
        "for split in tl.static_range(SPLITS - 1):",
    ),
    "join: the top of the first part": Mutant(
        SCORING, "top = tl.maximum(\n", "top = tl.minimum(\n"
    ),
    "join: label of the last part": Mutant(
        SCORING, "tl.where(found == found, found, own)", "found"
    ),
    "join: a row too far": Mutant(
        SCORING,
        "at = split * rows.to(tl.int64) + places",
        "at = split * rows.to(tl.int64) + places + 1",
    ),
    "recomputed: rows with g = 0 are read": Mutant(
        LINEAR,
        "torch.where(grad.unsqueeze(1) == 0, 0, packed.hidden[rows])",
        "packed.hidden[rows]",
    ),
    "recomputed: kept rows in their place": Mutant(
        LINEAR, "others = slice(kept, count)", "others = slice(0, count - kept)"
    ),
}
ONLY = {SCORING: "fused or no_column", ROWS: "not fused"}
MUTANTS |= {
    name: mutant._replace(suite=LINEAR_SUITE, only=ONLY.get(mutant.file, ""))
    for name, mutant in HEAD_MUTANTS.items()
}

LATTICE, HALVES = "kernels/preference/exact_kl.py", "kernels/preference/exact_jsd.py"
RANKING, SAMPLED, REWARDS = (
    "kernels/preference/list_mle.py",
    "kernels/preference/sampled.py",
    "kernels/preference/primitives.py",
)
VALUES, MASKS, DRAWS = "equals_enumeration", "mask_is_a_deletion", "same_rankings"
MUTANTS |= {
    name: Mutant(file, old, new, LISTWISE, only)
    for name, file, old, new, only in (
        (
            "kl: a pass too few",
            LATTICE,
            "for _ in range(N - 2):  #",
            "for _ in range(N - 3):  #",
            VALUES,
        ),
        (
            "kl: a pass too few to go",
            LATTICE,
            "for _ in range(N - 2):\n",
            "for _ in range(N - 3):\n",
            f"{VALUES} and reverse",
        ),
        (
            "kl: along another bit",
            LATTICE,
            ">> (i + 1), 2, 1 << i)",
            ">> (i + 1), 1 << i, 2)",
            VALUES,
        ),
        (
            "kl: sets without the response",
            LATTICE,
            "slope = tl.where((sets >> i) & 1 == 1, reached * slope, 0.0)",
            "slope = reached * slope",
            VALUES,
        ),
        ("kl: wrong scale", LATTICE, "beta * tl.sum(slope, 0)", "tl.sum(slope, 0)", VALUES),
        (
            "kl: bfloat16 accumulation",
            LATTICE,
            "reached += arriving",
            "reached += arriving.to(tl.bfloat16).to(ACC)",
            VALUES,
        ),
        (
            "kl: what was to go is forgotten",
            LATTICE,
            "FROM=0) - left",
            "FROM=0)",
            f"{VALUES} and reverse",
        ),
        (
            "jsd: an order that is not there",
            HALVES,
            "(first < FIRST)[None, :]",
            "(first >= 0)[None, :]",
            "path_where and jsd",
        ),
        (
            "jsd: those not live sit anywhere",
            HALVES,
            "| (seat == FIRST + k))",
            "| (seat >= 0))",
            f"{MASKS} and jsd",
        ),
        (
            "jsd: sets too few",
            HALVES,
            "range(0, SETS, BLOCK_S)",
            "range(0, SETS - BLOCK_S, BLOCK_S)",
            f"{VALUES} and jsd",
        ),
        (
            "jsd: no pull at the rest",
            HALVES,
            "pull += tl.where(\n",
            "pull += 0.0 * tl.where(\n",
            f"{VALUES} and jsd",
        ),
        ("jsd: wrong scale", HALVES, "beta / 2 * slopes", "beta * slopes", f"{VALUES} and jsd"),
        (
            "jsd: bfloat16 accumulation",
            HALVES,
            "weight_r += p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0)",
            "weight_r += (p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0)).to(tl.bfloat16).to(ACC)",
            f"{VALUES} and jsd",
        ),
        (
            "vpd: ties the other way",
            RANKING,
            "(other_place >= place)",
            "(other_place <= place)",
            "vanilla",
        ),
        (
            "vpd: off by one tile",
            RANKING,
            "in range(0, responses, STEP):",
            "in range(0, responses - STEP, STEP):",
            "vanilla",
        ),
        (
            "vpd: keys in bfloat16",
            RANKING,
            "keys.to(tl.float32)",
            "keys.to(tl.bfloat16).to(tl.float32)",
            "own_dtype",
        ),
        ("vpd: wrong scale", RANKING, "beta * (grad - 1.0)", "grad - 1.0", f"{VALUES} and vpd"),
        (
            "vpd: the wrong program's loss",
            RANKING,
            "if tl.program_id(1) == 0:",
            "if tl.program_id(1) == 1:",
            f"{VALUES} and vpd",
        ),
        (
            "vpd: no rescaling",
            RANKING,
            "total = total * exp(peak - higher)",
            "total = total",
            "vanilla_of_any",
        ),
        (
            "sampled: draws beyond the last",
            SAMPLED,
            "here = (draw < samples)[:, None]",
            "here = (draw >= 0)[:, None]",
            f"{DRAWS} and kl",
        ),
        (
            "sampled: one noise for all groups",
            SAMPLED,
            "shape * 0 + row.to(tl.int32)",
            "shape * 0",
            "draws_repeat",
        ),
        ("sampled: uniform noise", SAMPLED, "-tl.log(1.0 - v)).to(ACC)", "v).to(ACC)", "unbiased"),
        (
            "sampled: a pair in its own baseline",
            SAMPLED,
            "share = own / (pairs - 1.0)",
            "share = own / pairs",
            f"{DRAWS} and jsd",
        ),
        (
            "sampled: a draw in its own baseline",
            SAMPLED,
            "* (samples / (samples - 1.0))",
            "",
            f"{DRAWS} and reverse",
        ),
        (
            "sampled: no baseline",
            SAMPLED,
            "grad -= tl.sum(both, 0)",
            "grad -= 0.0 * tl.sum(both, 0)",
            f"{DRAWS} and jsd",
        ),
        (
            "rewards: masked ones are read",
            REWARDS,
            "there = there & tl.load",
            "there = there | tl.load",
            f"{MASKS} and vpd",
        ),
        (
            "rewards: a bit too far",
            REWARDS,
            "tl.int32) << i",
            "tl.int32) << (i + 1)",
            f"{MASKS} and exact",
        ),
    )
}


def run(name: str) -> str:
    """The test that fails on the mutant, "" if none does."""
    mutant = MUTANTS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("kernels", "pad_fast", "tests"):
            shutil.copytree(
                ROOT / part, copy / part, ignore=shutil.ignore_patterns("tiny_world", "__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", copy)
        source = copy / mutant.file
        text = source.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(
                f"{name}: {mutant.old!r} must occur once in {mutant.file}, occurs {text.count(mutant.old)} times"
            )
        source.write_text(text.replace(mutant.old, mutant.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            mutant.suite,
            "-k",
            mutant.only,
            "-v",
            "-x",
            "--no-header",
            "-p",
            "no:cacheprovider",
        ]
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": folder,
        }
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode == 0:
        return ""
    started = re.findall(
        rf"^{mutant.suite}::(\S+)", done.stdout, re.MULTILINE
    )  # the last of them failed, or took the process along
    if not started:
        raise RuntimeError(
            f"{name}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return started[-1] + (f" (died of signal {-done.returncode})" if done.returncode < 0 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MUTANTS, default=list(MUTANTS), metavar="NAME")
    parser.add_argument(
        "--write", action="store_true", help=f"record the answers in {RECORD.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    answers = {}
    for name in arguments.only:
        answers[name] = run(name)
        print(f"{name:44} {answers[name] or 'SURVIVED'}", flush=True)
    if arguments.write:
        known = json.loads(RECORD.read_text()) | answers if RECORD.exists() else answers
        RECORD.write_text(
            json.dumps({name: known[name] for name in MUTANTS if name in known}, indent=1) + "\n"
        )
    sys.exit("" in answers.values())


if __name__ == "__main__":
    main()
