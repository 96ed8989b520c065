"""The models that a run evaluates: their names in ``evaluation/NAME.json``, and what tables say.

A run evaluates ``teacher``, ``student-00`` (the base student), ``student-RR`` after round RR, and
the baseline ``seqkd``.
"""

TEACHER, BASE, SEQKD = "teacher", "student-00", "seqkd"
BEFORE, AFTER = "student before", "student after"  # where only the base and the last are compared
# Columns of evaluation/NAME.parquet with a metric's value of each prompt begin with this.
BY_PROMPT = "metric/"
_PREFIX = "student-"


def student(round: int) -> str:
    """The name of the student after a round."""
    return f"{_PREFIX}{round:02d}"


def is_student(name: str) -> bool:
    """Whether the model is the base student or the student after a round."""
    return name.startswith(_PREFIX)


def position(name: str) -> tuple[int, int, str]:
    """The sort key of a table's rows: the teacher, the students by round, then the baselines."""
    if is_student(name):
        return 1, _round(name), name
    return (0 if name == TEACHER else 2), 0, name


def label(name: str) -> str:
    """How tables of text name a model: "teacher", "student before", "after round 2"."""
    known = {TEACHER: "teacher", BASE: BEFORE, SEQKD: "SeqKD"}
    return known.get(name, f"after round {_round(name)}" if is_student(name) else name)


def title(name: str) -> str:
    """How the report's page names a model: "Teacher", "Base student", "After round 2"."""
    known = {TEACHER: "Teacher", BASE: "Base student", SEQKD: "SeqKD"}
    return known.get(name, f"After round {_round(name)}" if is_student(name) else name)


def _round(student: str) -> int:
    return int(student.removeprefix(_PREFIX))
