"""Test that a process of a training imports no unused library, which would delay its first step."""

import subprocess
import sys

import pytest

from tests.launcher import PROJECT

pytestmark = pytest.mark.long

NOT_NEEDED = ("hydra", "matplotlib", "nvidia.dali", "pandas", "rich", "scipy", "sklearn", "submitit",
              "timm", "torchvision", "wandb")  # fmt: skip
LOADED = """
import sys
import pipeline.worker, pipeline.stages.train
from pipeline.data.loaders import choose
choose.named("memory")
print(*sys.modules)
"""


def test_a_training_imports_no_library_that_it_does_not_use():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"torch", "pipeline.training.loop", "pipeline.data.loaders.memory"} <= loaded
    assert loaded.isdisjoint(NOT_NEEDED)
