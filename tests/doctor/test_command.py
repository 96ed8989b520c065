"""``pad-fast doctor``: its output, its exit codes, and that it leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from findings import doctor_config, findings
from worlds import contents

from pad_fast import cli


@pytest.mark.parametrize("started", [False, True])
def test_a_run_behaves_as_if_there_had_been_no_doctor(world, tmp_path, capsys, started):
    path = doctor_config(world, tmp_path, max_new_tokens=6, temperature=1.3)
    if started:
        assert cli.main(["sample", str(path)]) == 0
    before = contents(tmp_path)
    assert cli.main(["doctor", str(path), "--num_prompts", "4"]) in (0, 3)
    assert contents(tmp_path) == before
    assert "end of response" in capsys.readouterr().out


def test_a_healthy_world_is_ok(tmp_path, capsys):
    tiny = Path(cli.__file__).parent / "tiny_world" / "tiny.yaml"
    arguments = [
        "doctor",
        str(tiny),
        "--num_prompts",
        "6",
        "--num_generations",
        "4",
        "--disable_tqdm",
        "true",
        "--json",
    ]
    arguments += ["--output_dir", str(tmp_path / "run"), "--mcq_weight", "0.5"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] in ("ok", "look")
    verdicts = {finding["check"]: finding["verdict"] for finding in said["findings"]}
    assert len(verdicts) == 14
    assert {
        verdicts[name]
        for name in (
            "student's template",
            "teacher's template",
            "end of response",
            "clipped",
            "letters",
        )
    } == {"ok"}
    assert not (tmp_path / "run").exists()


def test_exit_codes(world, tmp_path, capsys):
    path = doctor_config(world, tmp_path, max_new_tokens=1)  # every response is cut
    assert cli.main(["doctor", str(path), "--num_prompts", "2"]) == 3
    output = capsys.readouterr().out
    assert "problem" in output
    assert "raise max_new_tokens" in output
    assert cli.main(["doctor", str(path), "--num_prompts", "1"]) == 2
    assert "num_prompts: must be 2 or more, got 1" in capsys.readouterr().err
    assert cli.main(["doctor", str(path), "--num_prompt", "3"]) == 2
    assert "did you mean --num_prompts?" in capsys.readouterr().err
    # A flag of the command is not a setting of a run.
    path.write_text(path.read_text() + "num_prompts: 4\n")
    assert cli.main(["doctor", str(path)]) == 2
    assert "unknown key 'num_prompts'" in capsys.readouterr().err


def test_the_seed_chooses(world, tmp_path):
    path = doctor_config(world, tmp_path)
    first, again = findings(path), findings(path)
    assert first == again
    assert findings(doctor_config(world, tmp_path, seed=8)) != first
