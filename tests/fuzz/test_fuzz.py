"""Random cases of fixed seeds against float64 oracles; ``python -m tests.fuzz`` runs new ones."""

import pytest
import torch

from .run import run_case

CASES, PARTS = 300, 10


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy under the interpreter
@pytest.mark.parametrize("part", range(PARTS))
def test_cases_of_fixed_seeds_agree_with_their_oracles(part):
    failures = [run_case(seed) for seed in range(part, CASES, PARTS)]
    assert not any(failures), "\n".join(str(failure) for failure in failures if failure)
