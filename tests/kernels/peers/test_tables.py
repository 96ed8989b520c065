"""Which of the other projects' cases run where."""

import pytest

from tests.kernels.peers import test_hidden, test_logits
from tests.kernels.peers.cases import LONG_SECONDS
from tests.kernels.peers.cases import tests_of as of_all


@pytest.mark.parametrize(
    "tables", [test_hidden.TABLES, test_logits.TABLES], ids=["hidden", "logits"]
)
def test_every_table_and_dtype_is_interpreted_by_the_test_command(tables):
    _, parameters = of_all(tables).args
    quick, every = set(), 0
    for parameter in parameters:
        cases, impl = parameter.values
        table, dtype, _, size = parameter.id.split(", ")
        if impl == "triton":
            every += len(cases)
            quick |= {(table, dtype)} if size == "quick" else set()
            assert size != "long" or max(c.interpreted_seconds for c in cases) <= LONG_SECONDS
    assert quick == {(name, str(case.dtype)) for name, table in tables.items() for case in table}
    assert every == sum(len(table) for table in tables.values())
