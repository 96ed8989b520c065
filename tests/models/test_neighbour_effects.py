"""A reward is that of the response alone, also where a model looks at the rest of its call."""

import logging

import pytest
import torch
import transformers
from groups import SMALL, VOCABULARY, make_groups, make_model

from pad_fast.models import scoring
from pad_fast.models.causal_lm import model_window
from pad_fast.models.layout import LAYOUTS
from pad_fast.models.layout_trial import choose_layout
from pad_fast.models.neighbour_effects import Sides, sides_of
from pad_fast.models.packing import split
from pad_fast.models.rewards import attach_rewards_forward
from pad_fast.training.collator import PADCollator, Slicing

SWITCH = 40
# On both sides of the switch, at it, and one beyond it; in two groups a prompt has both kinds.
GROUPS = make_groups((12, (5, 29, 30, 70)), (60, (9, 4)), (8, (3, 33, 34)))
SHORT = make_groups((6, (3, 5)), (5, (2, 4)))


def long_rope(**others):
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 30.0],
        "original_max_position_embeddings": SWITCH,
        **others,
    }


def build(name, config, **options):
    sizes = {key: value for key, value in SMALL.items() if key not in options}
    torch.manual_seed(0)
    made = getattr(transformers, f"{config}Config")(**{**sizes, **options})
    return getattr(transformers, f"{name}ForCausalLM")(made).eval()


def plain_phi(**options):
    sizes = {"hidden_size": 32, "max_position_embeddings": 512}
    sizes["original_max_position_embeddings"] = SWITCH
    return build("Phi3", "Phi3", **sizes, head_dim=8, rope_parameters=long_rope(), **options)


def phi_moe():
    scales = {"short_mscale": 1.0, "long_mscale": 1.5}
    sizes = {"hidden_size": 32, "num_local_experts": 4, "max_position_embeddings": 512}
    return build("Phimoe", "Phimoe", **sizes, head_dim=8, rope_parameters=long_rope(**scales))


def llama():
    sizes = {"hidden_size": 32, "max_position_embeddings": 512}
    return build("Llama", "Llama", **sizes, rope_parameters=long_rope())


def falcon():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.FalconConfig(
        **sizes, num_attention_heads=4, alibi=True, initializer_range=0.4
    )
    return transformers.FalconForCausalLM(config).eval()


def bloom():
    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4
    )
    return transformers.BloomForCausalLM(config).eval()


def mpt():
    torch.manual_seed(0)
    config = transformers.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, initializer_range=0.4
    )
    return transformers.MptForCausalLM(config).eval()


def doge():
    return build("Doge", "Doge", hidden_size=32, keep_window_size=SWITCH)


def sparse():
    """DeepSeek-V3.2, whose attention leaves keys out beyond a length."""
    heads = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8}
    rotary = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    index = {"index_topk": SWITCH, "index_head_dim": 16, "index_n_heads": 32}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    own = {"moe_intermediate_size": 16, "first_k_dense_replace": 2, "hidden_size": 32}
    return build("DeepseekV32", "DeepseekV32", **heads, **rotary, **index, **experts, **own)


def llama4():
    """One chunk; the temperature of its layers without positions changes every 40 places."""
    tuning = {"attention_chunk_size": 4096, "floor_scale": SWITCH, "attn_scale": 0.5}
    sizes = {"intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]}
    return build("Llama4", "Llama4Text", hidden_size=32, **sizes, **tuning)


SHARING = {"phi3": plain_phi, "phimoe": phi_moe, "llama": llama}
ALONE = {
    "falcon": falcon,
    "bloom": bloom,
    "mpt": mpt,
    "doge": doge,
    "sparse": sparse,
    "llama4": llama4,
}


def alone(model, group, response):
    """The mean log-probability of a response by the model's own forward of one sequence."""
    ids = [*group.prompt, *response[:-1]]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, len(group.prompt) - 1 :]
    logps = logits.float().log_softmax(-1)
    return logps[torch.arange(len(response)), torch.tensor(response)].mean().item()


def scored(model, groups=GROUPS, **options):
    found = scoring.score_responses(
        model, [g.prompt for g in groups], [g.responses for g in groups], **options
    )
    return [reward for rewards in found for reward in rewards]


@pytest.mark.parametrize("name", {**SHARING, **ALONE})
def test_rewards_are_those_of_each_response_alone(name, monkeypatch):
    model = {**SHARING, **ALONE}[name]()
    wanted = [alone(model, group, y) for group in GROUPS for y in group.responses]
    assert choose_layout(model, SHORT, gradients=False) == (
        "shared" if name in SHARING else "padded"
    )
    for options in ({}, {"share_prefix": False}, {"max_tokens_per_batch": 150}):
        assert scored(model, **options) == pytest.approx(wanted, abs=2e-5), options
    monkeypatch.setattr(scoring, "choose_layout", lambda *_, **__: "padded")
    assert scored(model) == pytest.approx(wanted, abs=2e-5)


def test_next_tokens_do_not_depend_on_longer_prompts():
    model, prompts = plain_phi(), [list(range(1, 9)), [1] * 50, [2] * SWITCH, [3] * (SWITCH + 1)]
    found = scoring.next_token_logprobs(model, prompts, [4, 5])
    for prompt, logps in zip(prompts, found, strict=True):
        assert logps == pytest.approx(
            scoring.next_token_logprobs(model, [prompt], [4, 5])[0], abs=1e-5
        )


def test_training_reads_each_side_by_itself():
    """Rewards and gradients of a collated batch are those of each response alone."""
    model = plain_phi()
    attach_rewards_forward(model)
    rows = [
        {
            "prompt_ids": group.prompt,
            "completion_ids": group.responses,
            "teacher_rewards": [0.0] * len(group.responses),
            "clipped": [False] * len(group.responses),
        }
        for group in GROUPS
    ]
    for layout in LAYOUTS:
        batch = PADCollator().sliced(Slicing(layout, sides=sides_of(model)))(rows)
        assert len(batch["slices"]) == 2
        found = sum(model(**part, num_responses=12) for part in batch["slices"])
        wanted = [alone(model, group, y) for group in GROUPS for y in group.responses]
        assert found[batch["mask"].flatten()].tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_trial_of_packed_rows_packs_some(monkeypatch, caplog):
    """No two of these fit into a row as long as the longest, and a later batch has some that do."""
    groups = make_groups((9, (4, 5)), (8, (3, 4)))
    lengths = [len(g.prompt) + len(y) - 1 for g in groups for y in g.responses]
    assert 2 * min(lengths) > max(lengths)
    model = make_model(dtype=torch.float32)
    own = model.model.forward

    def deaf(**arguments):
        return own(**{**arguments, "position_ids": None})

    monkeypatch.setattr(model.model, "forward", deaf)
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert choose_layout(model, groups, False) == "padded"


def test_sides():
    sides = Sides(switches=(10, 20), padded_up_to=30)
    assert [sides(n)[0] for n in (10, 11, 20, 21)] == [0, 1, 1, 2]
    assert len({sides(n) for n in (25, 30, 31, 32, 31)}) == 3
    assert not Sides()
    [group] = make_groups((5, (3, 9, 2, 30)))
    parts = split([group], None, "shared", Sides(switches=(9,)))
    assert [[list(g.numbers) for g in part] for part in parts] == [[[1, 3]], [[0, 2]]]
    for model in (make_model(), make_model("gemma3")):
        assert not sides_of(model)
    assert sides_of(plain_phi()).switches == (SWITCH,)


def test_layer_types_may_have_switches_of_their_own():
    model = make_model()
    model.config.rope_parameters = {
        "full_attention": long_rope(),
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert sides_of(model).switches == (SWITCH,)
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not sides_of(model)  # its factors change beyond the window, where nothing is read
    assert model_window(model) is not None
