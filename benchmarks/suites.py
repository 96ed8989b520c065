"""The suites: the one list of what is measured, which commands, tables and pictures iterate over.

A new suite is an entry of :data:`SUITES`. Its records are in results/NAME.jsonl. Two other studies
have commands and records of their own, ``demo`` and ``scaling``: tables.py and pictures.py name
what is made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from benchmarks import listwise
from benchmarks.cases import Case
from benchmarks.contestants import PLAIN, Contestant, Participant
from benchmarks.measure import run_case
from benchmarks.peers import PEERS
from benchmarks.records import Record
from benchmarks.step_cases import LONGEST, StepCase
from benchmarks.steps import STEP_CONTESTANTS, run_step_case
from pad_fast import reference
