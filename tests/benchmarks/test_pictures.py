"""Pictures are drawn from the newest records."""

from benchmarks import tables
from benchmarks.pictures import draw, listwise, style
from benchmarks.records import RESULTS, load, newest, ran
from benchmarks.suites import SUITES


def test_a_suite_has_a_picture_for_each_kind_of_its_cases(results, capsys):
    tables.rebuild(results, [])
    names = {path.name for path in results.glob("*.png")}
    assert names == {"cpu-tokens.png", "cpu-memory.png", "cpu-listwise.png"}


def test_a_job_without_a_colour_of_its_own_gets_one(records):
    unknown = [records[-1] | {"job": "new_loss"}]
    colours = listwise.job_colours(unknown)
    assert list(colours) == [*listwise.JOB_COLOURS, "new_loss"]
    assert colours["new_loss"] in style.OTHERS


def test_every_contestant_of_the_recorded_bars_has_its_own_colour():
    for suite in SUITES.values():
        for cases in newest(load(RESULTS, suite.name)).values():
            _, _, bars = draw.by_picture(cases)
            colours = style.colours_of(record["contestant"] for record in ran(bars))
            assert len(set(colours.values())) == len(colours)
