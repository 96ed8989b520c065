"""The settings of a run in groups, each a dataclass whose fields are keys and flags.

:data:`GROUPS` has them in the order in which they are read and shown. A setting stands before those
whose default it is.
"""

from __future__ import annotations

from pad_fast.pipeline.options.adapter import AdapterOptions
from pad_fast.pipeline.options.benchmarks import BenchmarkOptions
from pad_fast.pipeline.options.calibration import CalibrationOptions
from pad_fast.pipeline.options.evaluation import EvaluationOptions
from pad_fast.pipeline.options.models import ModelOptions
from pad_fast.pipeline.options.prompts import PromptOptions
from pad_fast.pipeline.options.rewards import RewardOptions
from pad_fast.pipeline.options.run import RunOptions
from pad_fast.pipeline.options.sampling import SamplingOptions
from pad_fast.pipeline.options.servers import ServerOptions
from pad_fast.pipeline.options.train import TrainOptions

GROUPS: dict[str, type] = {
    "models": ModelOptions,
    "prompts": PromptOptions,
    "run": RunOptions,
    "sampling": SamplingOptions,
    "rewards": RewardOptions,
    "calibration": CalibrationOptions,
    "training": TrainOptions,
    "adapter": AdapterOptions,
    "evaluation": EvaluationOptions,
    "servers": ServerOptions,
    "benchmarks": BenchmarkOptions,
}
