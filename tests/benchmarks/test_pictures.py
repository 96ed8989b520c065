"""Pictures are drawn from the newest records."""

from benchmarks import pictures, tables


def test_a_suite_has_a_picture_for_each_kind_of_its_cases(results, capsys):
    tables.rebuild(results, [])
    names = {path.name for path in results.glob("*.png")}
    assert names == {"cpu-tokens.png", "cpu-memory.png", "cpu-listwise.png"}


def test_a_job_without_a_colour_of_its_own_gets_one(records):
    unknown = [records[-1] | {"job": "new_loss"}]
    colours = pictures._job_colours(unknown)
    assert list(colours) == [*pictures.JOB_COLOURS, "new_loss"]
    assert colours["new_loss"] in pictures.OTHERS
