"""The models that a run evaluates: their names in ``evaluation/NAME.json``, and what tables say.

A run evaluates ``teacher``, ``student-00`` (the base student), ``student-RR`` after round RR, and
the baseline ``seqkd``.
"""

TEACHER, BASE, SEQKD = "teacher", "student-00", "seqkd"
STUDENTS = "student-"


def round_of(name: str) -> int | None:
    """The round after which a student was evaluated, 0 for the base student; None for others."""
    return int(name.removeprefix(STUDENTS)) if name.startswith(STUDENTS) else None


def position(name: str) -> tuple[int, int, str]:
    """The sort key of a table's rows: the teacher, the students by round, then the baselines."""
    round = round_of(name)
    if round is not None:
        return 1, round, name
    return (0 if name == TEACHER else 2), 0, name


def label(name: str, *, final: bool = False) -> str:
    """How tables of text name a model: "teacher", "student before", "after round 2".

    Args:
        name: the model's name.
        final: whether the table compares the base student with this one, its "student after".
    """
    if final:
        return "student after"
    known = {TEACHER: "teacher", BASE: "student before", SEQKD: "SeqKD"}
    round = round_of(name)
    return known.get(name, name if round is None else f"after round {round}")


def title(name: str) -> str:
    """How the report's page names a model: "Teacher", "Base student", "After round 2"."""
    known = {TEACHER: "Teacher", BASE: "Base student", SEQKD: "SeqKD"}
    round = round_of(name)
    return known.get(name, name if round is None else f"After round {round}")
