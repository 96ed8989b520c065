"""How kernels are compiled: which products and sums are fused, and what compiles nothing again."""

import json

from tests.kernels.compiled import python

FUSION = """
import json, re
from tools.kernel_cases import logits_cases, response_cases
from tools.kernel_resources import only_compile

found = {}
for case in logits_cases() + response_cases():
    if case.name in ("bf16", "bf16 V=50257", "bf16 softcap", "fp32 padded"):
        with only_compile("sm_90") as kernels:
            case.launch("sm_90")
        for kernel in kernels:
            multiply_adds = len(re.findall(r"fma\\.\\S*f32", kernel.asm["ptx"]))
            found[f"{kernel.name} {case.name}"] = (kernel.metadata.enable_fp_fusion, multiply_adds)
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
capped = (TokenOptions(1.0, 30.0, 1.0, -100), TokenOptions(0.8, 50.0, 0.5, -1))
wide = (TokenOptions(0.2, 30.0, 1.0, -100), TokenOptions(0.1, 50.0, 0.1, -1))
rows = ((1, 1), (1, 7), (2, 3), (16, 1), (5, 64))
odd = ((3, 5), (2, 7), (16, 1))
with only_compile("sm_90") as kernels:
    go(kernels, [(r, t, v) for r, t in rows for v in (32000, 128256)],
       plain, scaled, TokenOptions(1.5, 0.0, -1.0, 1))
    go(kernels, [(1, 5, 32000)], *capped)
    go(kernels, [(1, 5, 32000)], *wide)
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

    Two kernels are compiled for each thing that changes the machine code: a softcap, one whose
    powers of two are beyond float32's range, rows that are not aligned to 16 bytes (in one
    dimension or in both), and 32-bit labels. Rewards take three: one for padded ones, and two for
    packed ones.
    """
    assert [int(line) for line in python("-c", COUNT).split()] == [2, 2, 2, 2, 2, 2, 3]


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
