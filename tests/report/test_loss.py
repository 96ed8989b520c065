"""What the page says about the loss: its unit, its bound and its saturation."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_runs import make_run, read, write_rows

from pad_fast.report import write_report
from pad_fast.report.loss import loss_settings, saturated_shares
from pad_fast.report.run_records import read_run


@pytest.mark.parametrize(
    ("config", "noted"),
    [
        ({}, True),
        ({"divergence": "kl"}, False),
        ({"loss": "vpd"}, False),
        ({"group_reduction": "sum"}, False),
        ({"preference_weight": 0.0}, False),
    ],
)
def test_a_saturated_divergence_is_pointed_out(
    tmp_path: Path, config: dict[str, str], noted: bool
) -> None:
    run = make_run(tmp_path / "run", **config)
    for name, loss in (("student-00", 0.69), ("student-03", 0.3)):
        path = run / "evaluation" / f"{name}.parquet"
        write_rows(path, [row | {"ppd_loss": loss} for row in pq.read_table(path).to_pylist()])
    records = read_run(run)
    found = saturated_shares(loss_settings(records.config), records.losses)
    assert found == ({"before": 100.0, "after": 0.0} if noted else None)
    if noted:
        assert "The loss is saturated: 100% of the held-out prompts" in read(write_report(run))


def test_sums_are_not_called_per_token(tmp_path: Path) -> None:
    page = read(write_report(make_run(tmp_path / "run", rounds=1, normalize="sum")))
    assert "Rewards in nats (the" in page
