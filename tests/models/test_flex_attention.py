"""FlexAttention: its masks of blocks, its results, how often it is compiled."""

import pytest
import torch
from groups import RAGGED, assert_same, gradients, loss_of, make_groups, make_model

from pad_fast.models import flex_attention as flex_attention_module
from pad_fast.models.attention_inputs import AttentionInputs
from pad_fast.models.flex_attention import block_mask, flex_attention
from pad_fast.models.layout import BLOCK, RowLayout, Segment
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.packing import bucket, pack
from pad_fast.models.prefix_attention import prefix_attention
from pad_fast.models.rewards import attach_rewards_forward, packed_rewards


def dense(layout, window):
    """Which token sees which (T, T), token by token."""
    seen = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for segment in layout.segments_and_padding():
        prompt = range(segment.start, segment.start + segment.prompt)
        for start, stop in ((prompt.stop, prompt.stop), *segment.spans()):
            order = [*prompt, *range(start, stop)]
            for q, place in enumerate(order):
                first = 0 if window is None else max(0, q - window + 1)
                seen[place, order[first : q + 1]] = True
    return seen


SEGMENTS = ((300, (200, 0, 170, 5)), (20, (90, 90)), (1, (1, 0)), (140, ()))


def make_layout() -> RowLayout:
    segments, start = [], 0
    for prompt, responses in SEGMENTS:
        segments.append(Segment(start, prompt, responses))
        start = segments[-1].stop
    return RowLayout(segments, bucket(start))


@pytest.mark.parametrize("window", [None, 50, 260])
def test_block_masks(window):
    layout = make_layout()
    mask, wanted = block_mask(layout, window, torch.device("cpu")), dense(layout, window)
    places = torch.arange(layout.length)
    seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places)
    assert torch.equal(seen, wanted)
    blocks = wanted.view(layout.length // BLOCK, BLOCK, -1, BLOCK)
    some, every = blocks.any(3).any(1), blocks.all(3).all(1)

    def as_matrix(counts, indices):
        found = torch.zeros_like(some)
        for row, count in enumerate(counts[0, 0].tolist()):
            found[row, indices[0, 0, row, :count].long()] = True
        return found

    partly, wholly = (
        as_matrix(mask.kv_num_blocks, mask.kv_indices),
        as_matrix(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert not (partly & wholly).any()
    assert not (wholly & ~every).any()  # the mask is not applied there
    assert not (some & ~(partly | wholly)).any()
    assert wholly.sum() >= 0.5 * every.sum()
    assert window is not None or wholly.any()
    assert (partly | wholly).sum() <= some.sum() + len(SEGMENTS) * 8


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (260, 2.0)])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 2)])
def test_flex_attention_is_that_of_the_tiles(heads, window, softcap):
    """Forward only: FlexAttention has no backward on a CPU."""
    layout = make_layout()
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, count, layout.length, 16) for count in (heads[0], heads[1], heads[1])
    )
    inputs = AttentionInputs(query, key, value, layout, 0.3, window, softcap)
    found, wanted = flex_attention(inputs), prefix_attention(inputs)
    scores = query @ key.repeat_interleave(heads[0] // heads[1], 1).transpose(-1, -2) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~dense(layout, window), -torch.inf).softmax(-1)
    truth = (weights @ value.repeat_interleave(heads[0] // heads[1], 1)).transpose(1, 2)
    torch.testing.assert_close(wanted, truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_take_the_type_of_the_values(monkeypatch):
    """As a rotary embedding leaves them under autocast."""
    seen, layout = [], RowLayout([Segment(0, 200, (20, 36))], 256)

    def uncompiled(query, key, value, **options):
        seen.extend((query, key, value))
        return value

    monkeypatch.setattr(flex_attention_module, "_implementation", lambda *_: uncompiled)
    query, key, value = torch.randn(3, 1, 2, 256, 16)
    flex_attention(AttentionInputs(query, key, value.bfloat16(), layout, 0.3))
    assert [each.dtype for each in seen] == [torch.bfloat16] * 3
    assert torch.equal(seen[0], query.bfloat16())


def test_flex_attention_is_compiled_once(monkeypatch):
    """One graph serves all lengths and windows, and gives the numbers of the tiles.

    The compiler is off around it, as it is around our attention. Its backend makes no code, since
    only the number of graphs matters here.
    """
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention import flex_attention as torch_attention

    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(torch_attention.flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(flex_attention_module, "_implementation", lambda *_: function)
    attend = torch.no_grad()(torch.compiler.disable(flex_attention))
    for softcap, graphs in ((None, 2), (2.0, 4), (3.0, 6)):  # without a window, and with one
        for prompt, responses in (
            (300, (200, 0, 170, 5)),
            (3, (1, 1)),
            (700, (90, 300)),
            (1000, (20, 700)),
        ):
            length = bucket(prompt + sum(responses))
            layout = RowLayout([Segment(0, prompt, responses)], length)
            query, key, value = (torch.randn(1, heads, length, 16) for heads in (4, 2, 2))
            for window in (None, 50, 260):
                inputs = AttentionInputs(query, key, value, layout, 0.3, window, softcap)
                found, wanted = attend(inputs), prefix_attention(inputs)
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert counter.frame_count == graphs


def test_flex_attention_never_holds_all_scores_for_want_of_compilations(monkeypatch):
    """Beyond its limit of compilations, the compiler would run the uncompiled function."""
    from torch.nn.attention import flex_attention as torch_attention

    function = torch.compile(torch_attention.flex_attention, dynamic=True, backend="eager")
    monkeypatch.setattr(flex_attention_module, "_implementation", lambda *_: function)
    layout = RowLayout([Segment(0, 200, (20, 36))], 256)
    for heads in range(1, 11):  # more than the compiler's usual 8
        flex_attention(AttentionInputs(*torch.randn(3, 1, heads, 256, 16), layout, 0.3))
    monkeypatch.setitem(flex_attention_module.COMPILER_OPTIONS, "recompile_limit", 1)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        flex_attention(AttentionInputs(*torch.randn(3, 1, 11, 256, 16), layout, 0.3))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile reads it
def test_a_compiled_model_shares_prompts():
    """Our attention is outside the graphs, so that they do not depend on where sequences are.

    The second length is compiled as a variable, and then all lengths fit.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    counter, model = CompileCounterWithBackend("eager"), make_model("gemma2", torch.float32)
    attach_rewards_forward(model)
    compiled, graphs = torch.compile(model, backend=counter), []
    for seed in range(6):
        groups = make_groups(
            (3 + seed, (5, 4 + seed)), (6, tuple(range(2, 4 + seed % 3))), seed=seed
        )
        count, found = sum(len(group.numbers) for group in groups), []
        for call in (compiled, model):
            model.zero_grad()
            rewards = call(**pack(groups, "shared")._asdict(), num_responses=count)
            loss_of(rewards).backward()
            found.append(
                (
                    {name: gradient.clone() for name, gradient in gradients(model).items()},
                    rewards.detach(),
                )
            )
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-6)
        assert_same(*(gradient for gradient, _ in found), rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * 5


def assert_that_sharing_changes_nothing(name, device, *, autocast=False, head=16, heads=4):
    """Rewards and gradients of a tiny model with shared prompts, and with a row per response."""
    model = make_model(name, torch.float32, head_dim=head, num_attention_heads=heads)
    model.to(device)
    groups = make_groups(*RAGGED, (300, (200, 170)))
    count = sum(len(group.numbers) for group in groups)

    def precision():
        return torch.autocast(device.type, torch.bfloat16, enabled=autocast)

    assert choose_layout(model, groups, precision=precision) == "shared"
    found = []
    for layout in ("shared", "padded"):
        model.zero_grad()
        with precision():
            packed = pack(groups, layout, bucketed=True).on(device)
            rewards = packed_rewards(model, packed, count)
        loss_of(rewards).backward()
        own = {name: gradient.clone() for name, gradient in gradients(model).items()}
        found.append((rewards.detach(), own))
    (rewards, own), (wanted, gradient) = found
    if not autocast:
        torch.testing.assert_close(rewards, wanted, rtol=1e-3, atol=1e-3)
        assert_same(own, gradient, rtol=1e-2, atol=1e-3)
        return
    # Three times what bfloat16 moves them by against float32, on a CPU.
    torch.testing.assert_close(rewards, wanted, rtol=0.02, atol=0.02)
    for parameter, value in gradient.items():
        assert (own[parameter] - value).norm() <= 0.1 * value.norm(), parameter


# FlexAttention takes heads of 16 and more; all of these have two key heads.
CASES = [
    ("llama", {}),
    ("gemma2", {}),
    ("gemma3", {}),
    ("llama", {"autocast": True}),
    ("gemma3", {"autocast": True}),
    ("llama", {"autocast": True, "head": 80, "heads": 6}),
]
LARGE_HEADS = [
    ("qwen3", {"autocast": True, "head": 64}),
    ("mistral", {"autocast": True, "head": 128, "heads": 8}),
    ("gemma2", {"autocast": True, "head": 256}),
    ("gemma2", {"head": 256}),
    ("gemma3", {"autocast": True, "head": 512}),
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "options"), CASES + LARGE_HEADS, ids=str)
def test_flex_attention_on_a_gpu(name, options):
    """Also of float32 weights under bfloat16 autocast, whose queries stay float32."""
    assert_that_sharing_changes_nothing(name, torch.device("cuda"), **options)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_what_a_gpu_is_asked_holds_on_a_cpu(name, options):
    """The same comparison with the attention of tiles."""
    assert_that_sharing_changes_nothing(name, torch.device("cpu"), **options)


def test_the_loss_of_the_comparison_stays_on_its_device():
    """It mixed devices, so that the comparison failed on the first GPU that it ran on."""
    assert loss_of(torch.empty(5, device="meta")).device.type == "meta"
