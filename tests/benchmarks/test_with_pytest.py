"""``pytest benchmarks/`` runs, in its small form: also with what is compiled and with all peers."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.peers import PEERS
from benchmarks.suites import SUITES

ROOT = Path(__file__).resolve().parents[2]
# One compiled case; the others compile for seconds each.
QUICK = (
    "not torch.compile and not pad_fast_compile and not chunked"
    " or SimPO or torch.compile and response_rewards"
)
ON_A_CPU = {  # the packages of the peers that need no GPU, as they are imported
    "TRL fused head": "trl",
    "TRL selective_log_softmax": "trl",
    "Liger fused linear scaled CE": "liger_kernel",
    "Liger chunked SimPO": "liger_kernel",
}
MISSING = r"No module named|cannot import name|needs a C\+\+ compiler|kernels need a GPU"
CONTESTANTS = {contestant.name for contestant in SUITES["smoke"].contestants}


def small_suite(selected: str, record: Path) -> dict[str, set[str]]:
    """Run ``pytest benchmarks/``: why each contestant's cases were skipped, "" where one passed."""
    # It is no worker of the tests' own pytest-xdist, whose benchmarks would be turned off.
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    environment = {**own, "PAD_FAST_BENCHMARK": "smoke", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"),
            *("-k", selected, "--benchmark-disable-gc", "--benchmark-columns=min"),
            f"--junitxml={record}",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(record).iter("testcase"):
        shown, skipped = case.attrib["name"], case.find("skipped")
        (contestant,) = (name for name in CONTESTANTS if shown.startswith(f"test_step[{name}-"))
        reason = "" if skipped is None else skipped.attrib["message"]
        found.setdefault(contestant, set()).add(reason)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("selected", [QUICK, pytest.param("", marks=pytest.mark.long)])
def test_the_small_suite_runs_through_pytest_benchmark(selected, tmp_path):
    """Whatever a peer warns of, it passes where it is installed and needs no GPU."""
    found = small_suite(selected, tmp_path / "found.xml")
    passed = {name for name, skips in found.items() if "" in skips}
    installed = {name for name, package in ON_A_CPU.items() if importlib.util.find_spec(package)}
    assert passed & ON_A_CPU.keys() == installed
    for name in found.keys() - passed:
        assert any(re.search(MISSING, reason) for reason in found[name]), (name, found[name])
    left_out = (
        {"pad_fast, PAD_FAST_COMPILE=1", "QuACK chunked linear CE, mean"} if selected else set()
    )
    assert found.keys() == CONTESTANTS - left_out


def test_the_peers_of_a_cpu_are_peers():
    assert ON_A_CPU.keys() <= {peer.name for peer in PEERS}
