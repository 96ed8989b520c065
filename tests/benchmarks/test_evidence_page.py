"""What the page about the study says follows its records, whatever is done so far."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import records as files
from benchmarks import tables
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import findings, page
from benchmarks.evidence.cells import Cell, cells
from benchmarks.evidence.claims import claims
from benchmarks.evidence.findings import HAVE, asides, best, decisions, studied, verdict
from benchmarks.evidence.kept import shortened
from benchmarks.evidence.measures import MEASURES
from benchmarks.evidence.pictures import draw_evidence
from benchmarks.evidence.results import Results, matrix
from benchmarks.evidence.settings import FULL, SETTINGS
from benchmarks.evidence.tables import report

PROMPTS = 200


def record(method, right, setting="a", budget="steps", **more):
    """A test record whose greedy and sampled answers are right for a share of the prompts."""
    values = (np.arange(PROMPTS) < right * PROMPTS).astype(float).tolist()
    prompts = dict.fromkeys(MEASURES, values) | {"greedy_teacher": [v - 1.23456 for v in values]}
    cell = {**vars(Cell("full", setting, 1, 1, method, budget=budget)), **more.pop("cell", {})}
    means = {name: float(np.mean(series)) for name, series in prompts.items()}
    return {"cell": cell, "means": means, "prompts": prompts, "run": "2026", **more}


IMITATION = [
    record(name, right, budget=budget)
    for name, right in (("base", 0.3), ("seqkd", 0.6), ("rft", 0.5))
    for budget in (("steps",) if name == "base" else ("steps", "tokens"))
]


def test_nothing_is_claimed_without_records() -> None:
    assert verdict([]).startswith("The study has not come to a composed method yet. Done so far: 0")
    rows = decisions([])
    assert [row[0] for row in rows[1:]] == [*HAVE.values()]
    assert {cell for row in rows[1:] for cell in row[1:]} == {findings.NOT_RUN}
    assert {row[-1] for row in claims([])[1:]} == {findings.NOT_RUN}
    assert draw_evidence([]) is None
    assert all(make([]) for make in page.PARTS.values())


@pytest.mark.parametrize(
    ("right", "wins"), [(0.9, True), (0.65, False), (0.2, False)], ids=["above", "near", "below"]
)
def test_a_composed_method_wins_only_with_separate_intervals(right, wins) -> None:
    found = verdict([*IMITATION, record("weighted", right)])
    assert found.startswith("**A composed method beats" if wins else "**No composed method beats")
    assert ("right, greedy 90.0 [" in found) == wins
    assert ("intervals in 2 of 2 comparisons: " if wins else "any of 2 comparisons.") in found
    assert "a composed method reads: a: from the base student (100%)" in found
    assert f"of {len(cells(FULL))} cells of the embedded worlds" in found


def test_nothing_is_won_before_all_rivals_have_run() -> None:
    known = [row for row in IMITATION if row["cell"]["method"] != "seqkd"]
    assert verdict([*known, record("weighted", 0.9)]).startswith("The study has not come to")
    # A teacher that only scores has no SeqKD to compare with, and the sentence does not name it.
    found = verdict([*known, record("weighted_own", 0.9)])
    assert found.startswith(
        "**A composed method beats RFT at equal compute, where the teacher only"
    )
    assert "c: the teacher only scores, right, greedy 90.0" in found
    assert "SeqKD" not in found
    both = verdict([*IMITATION, record("weighted_own", 0.55)])
    assert "beats both SeqKD and RFT" in both
    assert both.index("reads: a: from") < both.index("**No composed method beats RFT at equal")


def test_a_mean_of_fewer_runs_is_not_compared() -> None:
    """The first student may be an easy one."""
    others = [record("seqkd", 0.4, cell={"student": 2}), record("rft", 0.3, cell={"student": 2})]
    found = [*IMITATION, *others, record("dpo", 0.55)]
    ranked = best(Results(FULL, SETTINGS["a"], found), "steps", "greedy_right")
    assert ranked[0][0] == "seqkd"
    assert "dpo" not in dict(ranked)


def test_who_is_ahead_hides_nobody_who_is_better() -> None:
    """A gap in the records makes a mean low although the method is ahead prompt by prompt."""
    gaps = record("weighted", 0.62)
    gaps["prompts"]["greedy_right"][:40] = [None] * 40  # all of them right
    ranked = best(Results(FULL, SETTINGS["a"], [*IMITATION, gaps]), "steps", "greedy_right")
    assert [name for name, _ in ranked] == ["seqkd", "weighted"]


def test_settings_without_controls_have_no_such_table() -> None:
    rows = [record(name, 0.4, "g-n2") for name in ("base", "rft")]
    shown = report(FULL, rows)
    assert "n = 2" in shown
    assert "entropy of its samples" not in shown


def test_rates_at_an_end_of_the_grid_are_named() -> None:
    rows = [record("rft", 0.4, learning_rate=3e-5), record("dpo", 0.4, learning_rate=1e-4)]
    assert "beyond which a better one may lie: RFT (SFT on the best of n) (3e-05)." in report(
        FULL, rows
    )


def test_a_decision_names_who_may_be_as_good() -> None:
    found = [*IMITATION, record("weighted", 0.605), record("dpo", 0.4)]
    row = next(row for row in decisions(found) if row[0].startswith(HAVE["a"]))
    assert row[0].endswith(" – 4 of 17 methods so far")
    title = "composed: weighted likelihood, teacher's answer"
    assert f"right, greedy: **{title}** 60.5 (perhaps SeqKD)" in row[1]
    assert "RFT" not in row[1]
    ranked = best(Results(FULL, SETTINGS["a"], found), "steps", "greedy_right")
    assert [name for name, _ in ranked] == ["weighted", "seqkd"]


@pytest.mark.parametrize(
    ("right", "here"), [(0.8, "holds"), (0.2, "the opposite"), (0.4, "not seen")]
)
def test_a_claim_holds_where_the_interval_says_so(right, here) -> None:
    rows = claims([*IMITATION, record("dpo", 0.4), record("ppd_kl", right)])
    (dpo,) = (row for row in rows if row[0].endswith("pairs: DPO"))
    assert dpo[1:4] == ["PPD-KL − DPO, per token", "a: from the base student", "1"]
    assert dpo[-1] == here
    (listed,) = (row for row in rows if row[0].endswith("PRO"))
    assert listed[-1] == findings.NOT_RUN


def test_a_claim_has_a_row_in_each_setting_that_has_run() -> None:
    there = [record(name, 0.5, where) for where in ("a", "e") for name in ("ppd_kl", "seqkd")]
    real = {"size": "smollm2"}
    there += [record(name, 0.5, "smollm2", cell=real) for name in ("ppd_kl", "seqkd")]
    rows = [row for row in claims(there) if row[0].startswith("preferences teach more")]
    assert [row[2] for row in rows] == [
        "a: from the base student",
        "e: open-ended, graded",
        "SmolLM2-135M to 22 of its layers",
    ]
    assert rows[1][4] == "0.0 [0.0, 0.0]"  # percent
    assert rows[2][4] == "0.000 [0.000, 0.000]"  # nats a token, where the teacher judges
    shown = [row for row in claims(there) if row[0].startswith("more responses help: 8")]
    assert shown[0][2] == "a: from the base student − g: n = 2"


def test_runs_are_paired_whatever_the_order_of_their_records() -> None:
    def runs(name, order):
        return [record(name, 0.5, cell={"student": s, "seed": n}) for s, n in order]

    found = runs("seqkd", [(1, 1), (1, 2)]) + runs("rft", [(1, 2), (1, 1)])
    assert best(Results(FULL, SETTINGS["a"], found), "steps", "greedy_right")
    apart = Results(FULL, SETTINGS["a"], runs("seqkd", [(1, 1)]) + runs("rft", [(1, 2)]))
    seqkd, rft = (matrix(apart.of(name, "steps"), "greedy_right") for name in ("seqkd", "rft"))
    with pytest.raises(AssertionError):
        _ = seqkd - rft
    none = [*runs("seqkd", [(1, 1)]), *runs("rft", [(2, 1)]), *runs("weighted", [(3, 1)])]
    for row in none:
        row["cell"]["budget"] = "steps" if row["cell"]["method"] == "weighted" else "tokens"
    assert verdict(none).startswith("The study has not come to a composed method yet.")


def test_a_bound_competes_with_nobody() -> None:
    found = [*IMITATION, record("token_kd", 0.9)]
    row = next(row for row in decisions(found) if row[0].startswith(HAVE["a"]))
    assert "bound" not in " ".join(row)
    assert "| KL at each token of own samples (bound) | 1 | 90.0 [" in report(FULL, found)
    assert "token" not in Results(FULL, SETTINGS["a"], found).methods("tokens")
    assert "of own samples (bound), a: from the base student: right, greedy 90.0" in asides(found)


def test_what_was_read_is_said_where_it_is_not_the_whole() -> None:
    found = [row | {"tokens": 100} for row in IMITATION]
    found += [
        record("ppd_kl", 0.4, tokens=100, prompts_read=0.87),
        record("weighted", 0.55, tokens=94, prompts_read=1.0, answer_weight=0.995),
    ]
    said = report(FULL, found)
    name = "composed: weighted likelihood, teacher's answer"
    assert f"At equal tokens, read of that number of tokens: {name} 94%." in said
    assert "the responses of the others being all equal: PPD-KL 87%." in said
    assert f"Mean weight of the teacher's answer: {name} 0.995." in said
    assert "a: from the base student (94%)" in verdict(found)
    assert "weighted likelihood: 0.99 (a: from the base student)" in asides(found)


def test_the_start_at_a_lower_temperature_is_named_where_it_is_as_good() -> None:
    cool = record("base", 0.7, cell={"temperature": 0.5})
    (row,) = (row for row in decisions([*IMITATION, cool]) if row[0].startswith(HAVE["a"]))
    assert "right, sampled: **SeqKD** 60.0; the untrained start at T 0.5 has 70.0" in row[1]
    assert row[1].count("untrained") == 1  # greedy answers have no temperature
    cool = record("base", 0.4, cell={"temperature": 0.5})
    assert "untrained" not in str(decisions([*IMITATION, cool]))


def test_short_records_make_the_same_tables(tmp_path) -> None:
    found = [*IMITATION, record("weighted", 0.65, examples=[{"prompt": "Hi", "answer": "Ho"}])]
    control = record("base", 0.3, cell={"temperature": 0.5})
    files.path(tmp_path, "evidence").write_text("".join(json.dumps(r) + "\n" for r in found))
    command.main(["--results", str(tmp_path), "--keep", str(tmp_path / "short.jsonl")])
    short = files.load(tmp_path, "short")
    assert set(short[0]["prompts"]) == {
        "greedy_right", "greedy_teacher", "sampled_right", "sampled_teacher"
    }  # fmt: skip
    assert short[0]["prompts"]["greedy_right"][:1] == [1]
    assert short[0]["prompts"]["greedy_teacher"][0] == -0.23
    assert set(shortened(control)["prompts"]) == {"sampled_right", "sampled_teacher"}
    assert report(FULL, short) == report(FULL, found)
    assert verdict(short) == verdict(found)
    assert shortened(short[0]) == short[0]


def test_the_page_is_filled_and_drawn(tmp_path) -> None:
    more = [record("weighted", 0.9), record("seqkd", 0.7, "prompted", cell={"size": "prompted"})]
    more[1]["examples"] = [{"prompt": "Why?", "answer": "Because\nof it."}]
    rows = [*IMITATION, *more]
    files.path(tmp_path, "evidence").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = "\n".join(f"<!-- {name} -->\nstale\n<!-- /{name} -->" for name in page.PARTS)
    filled = tables.fill(text, tmp_path)
    assert "stale" not in filled
    assert "![For each setting" in filled
    assert "> Why?\n\n- **SeqKD**: Because of it." in filled
    assert "### Equal tokens" in filled
    assert len(studied(rows)) == 3  # a, c and the real one
    figure = draw_evidence(rows)
    titles = [axis.get_title(loc="right") for axis in figure.axes if axis.get_visible()]
    assert titles == [
        "a: from the base student: right, greedy",
        "c: the teacher only scores: right, greedy",
        "SmolLM2-135M taught by itself under a rule: obeyed, greedy",
    ]
