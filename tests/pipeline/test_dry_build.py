"""What the training needs is built before anything is sampled, and errors name the setting."""

from __future__ import annotations

import http.server
import json
import threading
import time
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from commands import failing
from huggingface_hub import constants
from pad_fast.kernels.common import trial
from transformers import AutoModelForCausalLM
from worlds import changed_config

from pad_fast import cli, dispatch
from pad_fast.pipeline import dry_build, hub
from pad_fast.pipeline.arguments import parse_settings
from pad_fast.pipeline.run import RunContext


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Nothing here may read weights."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


BAD = [
    (["--report_to", "wandb"], "report_to: the tracker wandb cannot be used: WandbCallback req"),
    (["--report_to", "tensorbord"], "report_to: must be none, all or some of azure_ml, "),
    (["--optim", "adamw_bnb_8bit"], "optim: the optimizer adamw_bnb_8bit cannot be built: You nee"),
    (["--optim", "galore_adamw"], "optim: the optimizer galore_adamw cannot be built"),
    (["--optim_args", "nothing"], "optim: the optimizer adamw_torch_fused cannot be built"),
    (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type: cosine_with_min_lr with"),
    (
        ["--lr_scheduler_type", "polynomial", '--lr_scheduler_kwargs={"powr": 2}'],
        "lr_scheduler_type: polynomial with {'powr': 2} cannot be built: ",
    ),
    (
        ["--lr_scheduler_type", "polynomial", "--learning_rate", "1e-9"],
        "lr_scheduler_type: polynomial with {} cannot be built: lr_end",
    ),
    (
        ['--activation_checkpointing_kwargs={"reentrant": true}'],
        "activation_checkpointing_kwargs: {'reentrant': True} cannot be used: Linear.",
    ),
    (["--torch_compile_backend", "gcc"], "torch_compile_backend or torch_compile_mode: cannot"),
    (["--use_liger_kernel", "true", "--fsdp", "full_shard"], "the training's settings: "),
    (["--push_to_hub", "true"], "hub_model_id: needed with push_to_hub"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_the_training_cannot_be_built_of(world, tmp_path, capsys, flags, message):
    config = changed_config(world, tmp_path)
    assert message in failing(capsys, "run", config, *flags)
    assert not (tmp_path / "run" / "run.json").exists()


def test_doctor_builds_it_too(world, tmp_path, capsys):
    config = changed_config(world, tmp_path)
    assert "report_to: " in failing(capsys, "doctor", config, "--report_to", "wandb")


def test_a_machine_without_a_compiler(world, tmp_path, capsys, monkeypatch):
    def launch(device):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(trial, "launch", launch)
    monkeypatch.setattr(dispatch, "runs_kernels", lambda tensor: True)
    config = changed_config(world, tmp_path)
    for command in ("run", "doctor"):
        assert "install gcc or clang, and python3-dev" in failing(capsys, command, config)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture
def split_by(monkeypatch):
    """Gives accelerate a plugin, as its launcher does on GPUs."""

    def give(**plugins) -> None:
        for name, plugin in plugins.items():
            monkeypatch.setattr(AcceleratorState, name, plugin, raising=False)

    return give


@pytest.mark.parametrize("form", ["SHARDED_STATE_DICT", "FULL_STATE_DICT", None])
def test_fsdp_saves_the_student_as_one_model(world, tmp_path, capsys, monkeypatch, split_by, form):
    """Without the setting, accelerate takes shards with FSDP2."""
    if form is not None:
        monkeypatch.setenv("FSDP_STATE_DICT_TYPE", form)
    split_by(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2))
    config = changed_config(world, tmp_path)
    if form == "FULL_STATE_DICT":
        dry_build.check_training(RunContext(parse_settings("run", [str(config)])))
        return
    error = failing(capsys, "run", config)
    assert "fsdp_state_dict_type: must be FULL_STATE_DICT, since the student is saved as" in error
    assert "got SHARDED_STATE_DICT; set it in the fsdp_config of accelerate's config" in error
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("stage", "whole"), [(3, False), (3, True), (2, False)])
def test_zero_3_saves_the_student_as_one_model(split_by, stage, whole):
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": whole}
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    state = SimpleNamespace(deepspeed_plugin=plugin)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=state))
    if stage == 2 or whole:
        dry_build._check_saved_form(trainer)
        return
    with pytest.raises(ValueError, match="zero3_save_16bit_model: must be true with ZeRO-3"):
        dry_build._check_saved_form(trainer)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bf16": True}, True),
        ({"bf16": False}, False),
        ({"bf16": True, "train_dtype": "bfloat16"}, False),
    ],
)
def test_what_deepspeed_rounds_is_told(world, tmp_path, caplog, settings, told):
    config = changed_config(world, tmp_path, **settings)
    run = RunContext(parse_settings("run", [str(config)]))
    for enabled in (True, False):
        caplog.clear()
        dry_build._tell_of_rounding(run, SimpleNamespace(is_deepspeed_enabled=enabled))
        assert ("to 16 bits where a round begins with bf16: true" in caplog.text) == (
            told and enabled
        )


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_what_can_be_built(world, tmp_path, optim):
    config = changed_config(world, tmp_path, optim=optim, lr_scheduler_type="inverse_sqrt")
    run = RunContext(parse_settings("run", [str(config)]))
    dry_build.check_training(run)
    assert not (tmp_path / "run").exists()


def test_wandb_is_logged_in_before_sampling(world, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(dry_build.INTEGRATION_TO_CALLBACK, "wandb", lambda: None)
    monkeypatch.setattr(
        dry_build, "import_module", lambda name: SimpleNamespace(login=lambda: calls.append(name))
    )
    config = changed_config(world, tmp_path, report_to="wandb")
    run = RunContext(parse_settings("run", [str(config)]))
    dry_build.check_training(run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    dry_build.check_training(run)
    assert calls == ["wandb"]


def test_an_evaluation_needs_no_training(finished, capsys):
    config = finished / "config.yaml"
    assert cli.main(["evaluate", str(config), "--report_to", "wandb"]) == 0


# The hub.


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one model, one dataset, and two tokens."""

    def do_GET(self):
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        roles = {"hf_reader": "read", "hf_writer": "write"}
        status, answer = 404, {}
        if self.path == "/api/whoami-v2":
            status = 200 if token in roles else 401
            answer = {"auth": {"accessToken": {"role": roles.get(token)}}}
        elif self.path in ("/api/models/a/b", "/api/models/a/b/revision/v1", "/api/datasets/a/c"):
            status = 200
        elif self.path in ("/api/models/a/gated", "/api/models/a/terms/auth-check"):
            status = 403
        elif self.path in ("/api/models/a/terms", "/api/datasets/a/open"):
            status, answer = 200, {"gated": "manual"}
        elif self.path == "/api/datasets/a/open/auth-check":
            status = 200
        elif self.path == "/api/models/a/slow":
            time.sleep(2)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def stub_hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.handle_error = lambda *_: None  # whoever waits for the slow answer has gone by then
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_once(stub_hub, monkeypatch):
    assert hub.problem("models", "a/b") is None
    assert hub.problem("models", "a/b", "v1") is None
    assert hub.problem("datasets", "a/c") is None
    assert "hub has none of this name, or hides it" in hub.problem("models", "a/x")
    assert "with the revision v2" in hub.problem("models", "a/b", "v2")
    assert hub.problem("datasets", "a/open") is None  # its terms were accepted
    monkeypatch.setattr(hub, "get_token", lambda: None)
    for name in ("a/gated", "a/terms"):
        words = f"accept its terms at {constants.ENDPOINT}/{name} with your account; then log in"
        assert words in hub.problem("models", name)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")
    assert "the token in use has no access yet" in hub.problem("models", "a/terms")
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    assert "gives no answer" in hub.problem("models", "a/slow")
    assert "`hf download a/slow --local-dir FOLDER`" in hub.problem("models", "a/slow")


def test_tokens(stub_hub):
    assert hub.push_problem("hf_writer") is None
    assert hub.push_problem("hf_reader") == "the token may only read"
    assert hub.push_problem("hf_other") == "the token is wrong, or none was given"


@pytest.mark.parametrize("offline", [False, True])
def test_pushing_without_a_hub(world, tmp_path, capsys, monkeypatch, offline):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    config = changed_config(world, tmp_path)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    flags = ["--push_to_hub", "true", "--hub_model_id", "a/b", "--hub_token", "hf_x"]
    said = failing(capsys, "run", config, *flags)
    assert "push_to_hub: nothing can be pushed: " in said
    assert "hf_x" not in said
    assert sum(slept) < 10  # the hub's own retries take 23 seconds


@pytest.mark.parametrize("setting", ["student", "teacher", "prompts", "heldout"])
def test_names_that_are_nowhere(world, tmp_path, capsys, monkeypatch, setting):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config, slept = changed_config(world, tmp_path), []
    monkeypatch.setattr(time, "sleep", slept.append)
    said = failing(capsys, "run", config, f"--{setting}", "nowhere/at-all")
    assert f"{setting}: nowhere/at-all is neither a file nor a folder here, nor a" in said
    for path in ("/no/such/folder", "./some/where", "data/of/mine.jsonl"):
        said = failing(capsys, "run", config, f"--{setting}", path)
        assert f"{setting}: no such file or folder, {path}" in said
    assert sum(slept) < 15


def test_what_is_in_the_cache_is_not_asked_for(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "some_one___data_set").mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert hub.problem("datasets", "some-one/DataSet") is None
    assert hub.problem("datasets", "some-one/other") is not None
