"""What tables call the evaluated models, and in which order they name them."""

from pad_fast.evaluation import model_names

NAMES = ["seqkd", "student-00", "student-01", "student-10", "student-02", "teacher"]


def test_the_teacher_comes_first_then_the_students_by_round_then_the_baseline():
    ordered = sorted(NAMES, key=model_names.position)
    assert [model_names.label(name) for name in ordered] == [
        "teacher",
        "student before",
        "after round 1",
        "after round 2",
        "after round 10",
        "SeqKD",
    ]
    assert [model_names.title(name) for name in ordered] == [
        "Teacher",
        "Base student",
        "After round 1",
        "After round 2",
        "After round 10",
        "SeqKD",
    ]


def test_an_unknown_model_keeps_its_name_and_comes_last():
    assert model_names.label("dpo") == model_names.title("dpo") == "dpo"
    assert max([*NAMES, "dpo"], key=model_names.position) == "seqkd"
    assert not model_names.is_student("dpo")
