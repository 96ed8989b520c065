"""The kernels' mutants: each is one replacement in the sources that a test has to notice."""

from __future__ import annotations

from typing import NamedTuple

TESTS = "tests/kernels"
# Test modules in the order in which they run.
SUITE = tuple(
    f"{TESTS}/logprob/test_{name}.py"
    for name in ("values", "strides", "labels", "operation", "inplace_backward")
)
NARROW = (f"{TESTS}/logprob/test_softcap.py",)
RESPONSES_SUITE = (f"{TESTS}/logprob/test_responses.py",)
LINEAR_SUITE = tuple(f"{TESTS}/linear_logprob/test_{name}.py" for name in ("rows", "fused"))
LISTWISE = tuple(
    f"{TESTS}/preference/test_{name}.py"
    for name in ("values", "properties", "draws", "operation", "launches")
)


class Mutant(NamedTuple):
    """The text ``old``, which occurs once in ``file``, becomes ``new``."""

    file: str
    old: str
    new: str
    suite: tuple[str, ...] = SUITE
    # pytest's -k: the tests that are meant to notice, where the suite takes long.
    only: str = ""


LAUNCH = "kernels/logprob/launch.py"
FORWARD, BACKWARD = "kernels/logprob/forward.py", "kernels/logprob/backward.py"
SOFTMAX, NUMERICS = "kernels/logprob/softmax.py", "kernels/common/numerics.py"
OPS, RESPONSES = "pad_fast/logprob/response_op.py", "kernels/logprob/responses.py"
ROWS, SCORING = "kernels/linear_logprob/row_softmax.py", "kernels/linear_logprob/fused.py"
LINEAR, UPSTREAM, LINEAR_TRITON = (
    f"pad_fast/linear_logprob/{name}.py" for name in ("backward", "upstream", "triton_impl")
)
LINEAR_LAUNCH = "kernels/linear_logprob/launch.py"
MUTANTS = {
    "forward: a dropped mask": Mutant(FORWARD, 'tl.where(there, z, float("-inf"))', "z"),
    "forward: off by one tile": Mutant(
        FORWARD, "range(0, whole, BLOCK_V)", "range(BLOCK_V, whole, BLOCK_V)"
    ),
    "forward: wrong scale": Mutant(SOFTMAX, "below * LN_2 if CAPPED else below", "below"),
    "forward: an unread tail": Mutant(FORWARD, "if whole < vocabulary:", "if whole > vocabulary:"),
    "forward: bfloat16 accumulation": Mutant(
        SOFTMAX,
        "total * power(peak - higher, CAPPED) +",
        "total.to(tl.bfloat16).to(tl.float32) * power(peak - higher, CAPPED) +",
    ),
    "forward: no rescaling": Mutant(SOFTMAX, "total * power(peak - higher, CAPPED)", "total"),
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
        FORWARD, "mask=is_column(place, vocabulary)", "mask=place >= -1"
    ),
    "forward: 32-bit tile": Mutant(FORWARD, "tl.full((), BLOCK_V, tl.int64)", "BLOCK_V"),
    "forward: maximum starts too high": Mutant(
        SOFTMAX, "tl.constexpr(-3.4028234663852886e38)", "tl.constexpr(-1.0e4)"
    ),
    "forward: total of no column": Mutant(
        FORWARD, 'tl.where(is_column(label, vocabulary), sums, float("nan"))', "sums"
    ),
    "backward: a dropped mask": Mutant(
        BACKWARD,
        "d.to(dlogits_ptr.dtype.element_ty), mask=there)",
        "d.to(dlogits_ptr.dtype.element_ty), mask=there | (offsets < 8))",
    ),
    "backward: off by one tile": Mutant(
        BACKWARD, "x = tl.load(tile_ptr + steps)", "x = tl.load(tile_ptr + steps + stride_v)"
    ),
    "backward: wrong scale": Mutant(
        SOFTMAX, "inner * (outer * LN_2) if CAPPED", "inner * outer if CAPPED"
    ),
    "backward: an unwritten tail": Mutant(
        BACKWARD, "    if whole < last:\n        there", "    if whole > last:\n        there"
    ),
    "backward: bfloat16 accumulation": Mutant(
        BACKWARD,
        "share = scale / total",
        "share = (scale / total).to(tl.bfloat16).to(ACC)",
    ),
    "backward: no slope of the softcap": Mutant(SOFTMAX, "d *= s * (2.0 - s)", "d *= 1.0"),
    "backward: slope of a saturated score": Mutant(
        SOFTMAX, "s = (outer - tl.abs(z)) * (1.0 / outer)", "s = 1.0 - tl.abs(z) * (1.0 / outer)"
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
    "backward: no onehot": Mutant(SOFTMAX, "tl.where(offsets == place, scale + d, d)", "d"),
    "tanh: polynomial beyond its range": Mutant(
        NUMERICS, "t = tl.where(tl.abs(u) > bound,", "t = tl.where(tl.abs(u) > 1.2 * bound,"
    ),
    "tanh: tile takes the wrong branch": Mutant(
        NUMERICS, "if reach > bound:", "if reach > 4.0 * bound:"
    ),
    "tanh: a negative scale": Mutant(NUMERICS, "* tl.abs(factor)", "* factor"),
    "tanh: a negative bound": Mutant(NUMERICS, "1.0 / tl.abs(inner)", "1.0 / inner", NARROW),
    "tanh: the largest without its sign": Mutant(NUMERICS, "tl.max(tl.abs(x), 1)", "tl.max(x, 1)"),
    "tanh: another power in the coefficients": Mutant(LAUNCH, "(2 * k + 1)", "(2 * k)"),
    "softcap: powers beyond the range": Mutant(LAUNCH, "outer <= 100.0", "outer <= 1000.0"),
    "narrow: bfloat16 accumulation": Mutant(
        SOFTMAX, "tree_sum(tl.exp2(z))", "tree_sum(tl.exp2(z).to(tl.bfloat16).to(tl.float32))"
    ),
    "narrow: a difference of logarithms": Mutant(
        SOFTMAX, "total < own * 2.0**60", "total < own", NARROW
    ),
    "narrow: the quotient leaves the range": Mutant(
        SOFTMAX, "total < own * 2.0**60", "total == total", NARROW
    ),
    "narrow: no onehot": Mutant(SOFTMAX, "tl.where(offsets == place, d - total, d)", "d"),
    "narrow: half of the slope": Mutant(SOFTMAX, "* (outer + tl.abs(z))", "* (outer + z)"),
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

# One suite looks for all of these.
FUSED, NOT_FUSED = "fused or no_column", "not fused"
HEAD_MUTANTS = {
    "rows: a dropped mask": Mutant(ROWS, 'tl.where(there, z, float("-inf"))', "z"),
    "rows: off by one tile": Mutant(
        ROWS, "range(0, whole, BLOCK_V):\n        x", "range(BLOCK_V, whole, BLOCK_V):\n        x"
    ),
    "rows: wrong scale": Mutant(
        SOFTMAX, "inner * (outer * LN_2) if CAPPED", "inner * outer if CAPPED", only=NOT_FUSED
    ),
    "rows: an unread tail": Mutant(
        ROWS,
        "scores.to(dtype))\n    if whole < vocabulary:",
        "scores.to(dtype))\n    if whole > vocabulary:",
    ),
    "rows: bfloat16 accumulation": Mutant(
        ROWS, "share = scale / total", "share = (scale / total).to(tl.bfloat16).to(ACC)"
    ),
    "rows: logp_grad without its first tile": Mutant(
        ROWS, "range(BLOCK_V, whole + BLOCK_V, BLOCK_V)", "range(BLOCK_V, whole, BLOCK_V)"
    ),
    "rows: no bias in the tail": Mutant(
        ROWS, "x += tl.load(bias_ptr + offsets, mask=there, other=0.0).to(x.dtype)", "x += 0.0"
    ),
    "rows: broken rows keep their scores": Mutant(ROWS, "if total != total:", "if total < 0.0:"),
    "fused: a dropped mask": Mutant(
        SCORING, 'tl.where((columns < vocabulary)[None, :], z, float("-inf"))', "z"
    ),
    "fused: off by one tile": Mutant(
        SCORING, "range(0, width, BLOCK_K)", "range(BLOCK_K, width + BLOCK_K, BLOCK_K)"
    ),
    "fused: wrong scale": Mutant(SOFTMAX, "below * LN_2 if CAPPED else below", "below", only=FUSED),
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
        SCORING, "top = tl.maximum(top", "top = tl.minimum(top"
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
        UPSTREAM,
        "torch.where(factor == 0, 0, factor * rows if scaled else rows)",
        "factor * rows if scaled else rows",
    ),
    "recomputed: kept rows in their place": Mutant(
        LINEAR,
        "again = torch.arange(kept, len(live.places), device=grad.device)",
        "again = torch.arange(len(live.places) - kept, device=grad.device)",
    ),
}
ONLY = {SCORING: FUSED, ROWS: NOT_FUSED}
MUTANTS |= {
    name: mutant._replace(suite=LINEAR_SUITE, only=mutant.only or ONLY.get(mutant.file, ""))
    for name, mutant in HEAD_MUTANTS.items()
}
MUTANTS |= {
    "fused: parts outside": Mutant(
        SCORING,
        "return item // SPLITS, item % SPLITS",
        "return item % SPLITS, item // SPLITS",
        (f"{TESTS}/test_l2_model.py",),
    ),
    "recomputed: above its peak": Mutant(
        SOFTMAX,
        "tl.minimum(z - peak, 0.0) if AGAIN else z - peak",
        "z - peak",
        LINEAR_SUITE,
        "exceed",
    ),
    "narrow: above its peak": Mutant(
        SOFTMAX,
        "tl.minimum(tl.exp2(z), total) if AGAIN else tl.exp2(z)",
        "tl.exp2(z)",
        LINEAR_SUITE,
        "exceed",
    ),
    "fused: narrow in float16": Mutant(
        SCORING,
        "total += tl.sum(tl.exp2(z), 1)",
        "total += tl.sum(tl.exp2(z), 1).to(tl.float16)",
        LINEAR_SUITE,
        FUSED,
    ),
    "tanh: float64 cancels": Mutant(
        NUMERICS, "t = _float64_tanh(", "t = _far_tanh(", only="float64_softcap"
    ),
}

SCORES = (f"{TESTS}/linear_logprob/test_scores.py",)
SCORES_MUTANTS = {
    "scores: lanes without their peaks": Mutant(
        ROWS, "* power(peak - own, CAPPED)[:, None]", "* power(peak - peak, CAPPED)[:, None]"
    ),
    "scores: a softcap without its slope": Mutant(
        ROWS,
        "scores = tl.exp2(z) * (outer - tl.abs(z)) * (outer + tl.abs(z))",
        "scores = tl.exp2(z) * outer * outer",
    ),
    "scores: padding is written": Mutant(
        ROWS,
        "tl.store(scores_ptr + whole + offsets, scores.to(dtype), mask=there)",
        "tl.store(scores_ptr + whole + offsets, scores.to(dtype), mask=offsets < 3)",
    ),
    "scores: the label's as the walk wrote it": Mutant(
        ROWS,
        "tl.store(scores_ptr + label, stored, mask=enough)",
        "tl.store(scores_ptr + label, stored, mask=total < 0.0)",
    ),
    "scores: the label's rounding stays": Mutant(ROWS, "row_scale * (score / stored)", "row_scale"),
    "scores: one walk for any label": Mutant(
        ROWS, "enough = peak - own <= FARTHEST", "enough = total == total"
    ),
    "scores: two walks for any label": Mutant(
        ROWS, "enough = peak - own <= FARTHEST", "enough = total != total"
    ),
    "scores: no scale of a second walk": Mutant(
        ROWS, "tl.where(row_scale == 0.0, 1.0, row_scale)", "row_scale"
    ),
    "scores: one walk in every dtype": Mutant(
        LINEAR_LAUNCH, "dtype == torch.bfloat16 and in_range", "in_range"
    ),
    "scores: one walk with every softcap": Mutant(LINEAR_LAUNCH, "capped == NARROW.value and ", ""),
    "scores: powers of two of any size": Mutant(
        LINEAR_LAUNCH, "logprob.constants(options)[1] <= MOST_BITS", "True"
    ),
    "scores: their scale is left out": Mutant(
        UPSTREAM,
        "self.grad[: len(row_scale)] * row_scale",
        "self.grad[: len(row_scale)]",
        only="any_size",
    ),
}
MUTANTS |= {name: mutant._replace(suite=SCORES) for name, mutant in SCORES_MUTANTS.items()}
MUTANTS["scores: their scale is left out of a frozen head"] = Mutant(
    LINEAR_TRITON, ".mul_(whole.row_scale.unsqueeze(1))", "", LINEAR_SUITE, "frozen"
)

EXACT_KL, EXACT_JSD = "kernels/preference/exact_kl.py", "kernels/preference/exact_jsd.py"
LIST_MLE, SAMPLED = "kernels/preference/list_mle.py", "kernels/preference/sampled_rankings.py"
PRIMITIVES = "kernels/preference/primitives.py"
REDUCTION, LOSS = "kernels/preference/reduction.py", "pad_fast/preference/op.py"
EMPTY, MEANS = "without_tokens_is_masked", "sums_and_means"
VALUES, MASKS, DRAWS = "equals_enumeration", "mask_is_a_deletion", "same_rankings"
MUTANTS |= {
    name: Mutant(file, old, new, LISTWISE, only)
    for name, file, old, new, only in (
        (
            "kl: a pass too few",
            EXACT_KL,
            "for _ in range(N - 2):  #",
            "for _ in range(N - 3):  #",
            VALUES,
        ),
        (
            "kl: a pass too few to go",
            EXACT_KL,
            "for _ in range(N - 2):\n",
            "for _ in range(N - 3):\n",
            f"{VALUES} and reverse",
        ),
        (
            "kl: along another bit",
            EXACT_KL,
            ">> (i + 1), 2, 1 << i)",
            ">> (i + 1), 1 << i, 2)",
            VALUES,
        ),
        (
            "kl: sets without the response",
            EXACT_KL,
            "slope = tl.where((sets >> i) & 1 == 1, reached * slope, 0.0)",
            "slope = reached * slope",
            VALUES,
        ),
        ("kl: wrong scale", EXACT_KL, "beta * tl.sum(slope, 0)", "tl.sum(slope, 0)", VALUES),
        (
            "kl: bfloat16 accumulation",
            EXACT_KL,
            "reached += arriving",
            "reached += arriving.to(tl.bfloat16).to(ACC)",
            VALUES,
        ),
        (
            "kl: the divergence ahead is forgotten",
            EXACT_KL,
            "FROM=0) - ahead",
            "FROM=0)",
            f"{VALUES} and reverse",
        ),
        (
            "jsd: an order that is not there",
            EXACT_JSD,
            "(f < FIRST)[None, :]",
            "(f >= 0)[None, :]",
            "path_where and jsd",
        ),
        (
            "jsd: those not live sit anywhere",
            EXACT_JSD,
            "| (seat == FIRST + k))",
            "| (seat >= 0))",
            f"{MASKS} and jsd",
        ),
        (
            "jsd: sets too few",
            EXACT_JSD,
            "range(0, SETS, BLOCK_S)",
            "range(0, SETS - BLOCK_S, BLOCK_S)",
            f"{VALUES} and jsd",
        ),
        (
            "jsd: no pull at the rest",
            EXACT_JSD,
            "pull += _pull(",
            "pull += 0.0 * _pull(",
            f"{VALUES} and jsd",
        ),
        ("jsd: wrong scale", EXACT_JSD, "] / 2 * slopes", "] * slopes", f"{VALUES} and jsd"),
        (
            "jsd: bfloat16 accumulation",
            EXACT_JSD,
            "weight += p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0)",
            "weight += p_s * tl.sum(tl.trans(q_s)[:, :, None] * log_u, 0).to(tl.bfloat16)",
            f"{VALUES} and jsd",
        ),
        (
            "vpd: ties the other way",
            LIST_MLE,
            "(other_place >= place)",
            "(other_place <= place)",
            "vanilla",
        ),
        (
            "vpd: off by one tile",
            LIST_MLE,
            "in range(0, responses, STEP):",
            "in range(0, responses - STEP, STEP):",
            "vanilla",
        ),
        (
            "vpd: keys in bfloat16",
            LIST_MLE,
            "keys.to(tl.float32)",
            "keys.to(tl.bfloat16).to(tl.float32)",
            "own_dtype",
        ),
        ("vpd: wrong scale", LIST_MLE, "beta * (grad - 1.0)", "grad - 1.0", f"{VALUES} and vpd"),
        (
            "vpd: the wrong program's loss",
            LIST_MLE,
            "if tl.program_id(1) == 0:",
            "if tl.program_id(1) == 1:",
            f"{VALUES} and vpd",
        ),
        (
            "vpd: no rescaling",
            LIST_MLE,
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
            PRIMITIVES,
            "there = there & tl.load",
            "there = there | tl.load",
            f"{MASKS} and vpd",
        ),
        (
            "rewards: a bit too far",
            PRIMITIVES,
            "+ i).to(tl.int32) << i",
            "+ i).to(tl.int32) << (i + 1)",
            f"{MASKS} and exact",
        ),
        (
            "lengths: those without tokens count",
            PRIMITIVES,
            "other=0) > 0)",
            "other=0) >= 0)",
            f"{EMPTY} and vpd",
        ),
        (
            "lengths: a bit too far",
            PRIMITIVES,
            "> 0).to(tl.int32) << i",
            "> 0).to(tl.int32) << (i + 1)",
            f"{EMPTY} and kl",
        ),
        (
            "lengths: in place of the mask",
            PRIMITIVES,
            "bits &= filled",
            "bits = filled",
            f"{EMPTY} and kl",
        ),
        ("mean: over groups of one", REDUCTION, "1) >= 2)", "1) >= 1)", MEANS),
        (
            "mean: of no group",
            REDUCTION,
            "tl.maximum(tl.sum(count, 0), 1)",
            "tl.sum(count, 0)",
            "mean_of_nothing",
        ),
        (
            "mean: beyond the last response",
            REDUCTION,
            "& (place < responses)[None, :]",
            "& (place >= 0)[None, :]",
            MEANS,
        ),
        (
            "mean: off by one tile",
            REDUCTION,
            "range(0, groups, BLOCK_G)",
            "range(0, groups - BLOCK_G, BLOCK_G)",
            MEANS,
        ),
        (
            "mean: float32 accumulation",
            REDUCTION,
            "other=0.0).to(tl.float64)",
            "other=0.0).to(tl.float32).to(tl.float64)",
            MEANS,
        ),
        (
            "loss: the upstream gradient is not divided",
            LOSS,
            "dloss = dloss / divisor",
            "dloss = dloss * 1",
            "reduced_losses",
        ),
        (
            "loss: both kernels for groups that one takes",
            LOSS,
            'widest == "sampled" and groups.may_be_smaller',
            "groups.may_be_smaller",
            "one_launch",
        ),
        (
            "loss: masks are merged before the launch",
            LOSS,
            'if check_finite or implementation == "torch" or some:',
            "if True:",
            "one_launch",
        ),
    )
}

# Launches on whatever device is current.
HEAD_LAUNCH, LOGITS_LAUNCH, LOSS_LAUNCH = (
    f"kernels/{name}/launch.py" for name in ("linear_logprob", "logprob", "preference")
)
MUTANTS |= {
    f"launch: {name} on another device": Mutant(
        file,
        f"with on({device}):\n{first}",
        f"if True:\n{first}",
        (f"{TESTS}/test_current_device.py",),
    )
    for name, file, device, first in (
        ("rows", HEAD_LAUNCH, "logits.device", "        linear_logprob_rows["),
        ("score", HEAD_LAUNCH, "hidden.device", "        programs = "),
        ("logits", LOGITS_LAUNCH, "logits.device", "        logprob_fwd["),
        ("gradient of logits", LOGITS_LAUNCH, "logits.device", "        logprob_bwd["),
        ("sums", LOGITS_LAUNCH, "logps.device", "        if response_ids is None"),
        ("loss", LOSS_LAUNCH, "student.device", '        if kind == "vpd"'),
        ("mean", LOSS_LAUNCH, "loss.device", "        preference_reduce["),
    )
}
