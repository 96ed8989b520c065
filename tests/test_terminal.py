"""Terminals that lack characters, texts that look like markup, and commands to copy."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import worlds

from pad_fast import terminal
from pad_fast.doctor.command import print_findings
from pad_fast.pipeline.findings.finding import Finding

ROOT = Path(__file__).parents[1]
ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "OMP_NUM_THREADS": "1",
}
# All commands, one after another, in one process: importing everything takes longer than they do.
COMMANDS = """
import sys, torch
from pad_fast import cli
config = sys.argv[1]
torch.set_num_threads(1)
codes = [cli.main(words) for words in (
    ["env"], ["doctor", config, "--num_prompts", "2"], ["run", config], ["report", config],
    ["plan", config, "--num_prompts", "2", "--device_tflops", "1", "--device_bandwidth", "9"],
    ["sample", config], ["run", config, "--beta", "\\u22123"],
)]
print("codes", codes)
"""


@pytest.mark.slow
def test_every_command_on_a_terminal_without_unicode(tmp_path):
    config = worlds.write_config(tmp_path, disable_tqdm=False, save_strategy="no")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(config)],
        capture_output=True,
        env={**os.environ, **ASCII},
    )
    output, error = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    assert done.returncode == 0, error
    codes = [int(code) for code in re.findall(r"\d+", output.splitlines()[-1])]
    assert codes[2:4] == [0, 0]
    assert set(codes) <= {0, 2, 3}
    assert codes[-1] == 2
    assert "round 1/1 - sample" in error
    assert "\r" not in error + output  # no bar of another library either
    assert "'loss':" not in output  # nor a line for each step of the training
    assert "-> " in output  # doctor's advice


def test_stand_ins():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", errors="strict")
    own, sys.stdout = sys.stdout, stream
    try:
        terminal.use_stand_ins()
        print("round 1 · sample → −3 ± 0,5 … 日 \udcff")
    finally:
        sys.stdout = own
    stream.flush()
    assert raw.getvalue() == b"round 1 - sample -> -3 +- 0,5 ... \\u65e5 \xff\n"


def test_a_long_line_is_broken_on_terminals_alone(capsys, monkeypatch):
    line = "round 1/4 · score: " + ", ".join(f"metric/number_{n} {n}" for n in range(20))
    terminal.say(line)
    assert capsys.readouterr().out == line + "\n"
    monkeypatch.setattr(terminal, "console", partial(terminal.console, force_terminal=True))
    monkeypatch.setenv("COLUMNS", "50")
    terminal.say(line)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) > 5
    assert max(map(len, shown)) <= 50
    assert " ".join(text.strip() for text in shown) == line


def test_text_that_looks_like_markup_is_shown_as_it_is(capsys):
    found = Finding("end of response", "look", "ends with [/INST] :smile:", "[bold]set it[/bold]")
    print_findings([found])
    output = capsys.readouterr().out
    for text in ("[/INST] :smile:", "[bold]set it[/bold]"):
        assert text in output


def test_every_table_goes_through_the_console_without_markup():
    """A rich console of its own would read a model's tokens and a user's paths as markup."""
    makers = [
        path.relative_to(ROOT)
        for path in (ROOT / "pad_fast").rglob("*.py")
        if re.search(r"(?<!plain_)\bConsole\(", path.read_text(encoding="utf-8"))
    ]
    assert makers == [Path("pad_fast/terminal.py")]
