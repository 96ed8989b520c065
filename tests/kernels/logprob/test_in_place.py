"""The kernels' results can be changed in place."""

import pytest
from public_operations import check_in_place, operations

from tests.kernels.logprob.cases import DEVICE


def test_results_can_be_changed():
    for name, result in operations("triton", DEVICE).items():
        try:
            check_in_place(result)
        except RuntimeError as error:
            pytest.fail(f"{name}: {error}")
