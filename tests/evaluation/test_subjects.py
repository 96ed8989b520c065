"""What tables call the evaluated models, and in which order they name them."""

from pad_fast.evaluation import subjects

NAMES = ["seqkd", "student-00", "student-01", "student-10", "student-02", "teacher"]


def test_the_teacher_comes_first_then_the_students_by_round_then_the_baseline():
    ordered = sorted(NAMES, key=subjects.position)
    assert [subjects.label(name) for name in ordered] == [
        "teacher",
        "student before",
        "after round 1",
        "after round 2",
        "after round 10",
        "SeqKD",
    ]
    assert [subjects.title(name) for name in ordered] == [
        "Teacher",
        "Base student",
        "After round 1",
        "After round 2",
        "After round 10",
        "SeqKD",
    ]


def test_an_unknown_model_keeps_its_name_and_comes_last():
    assert subjects.label("dpo") == subjects.title("dpo") == "dpo"
    assert max([*NAMES, "dpo"], key=subjects.position) == "seqkd"
    assert not subjects.is_student("dpo")
