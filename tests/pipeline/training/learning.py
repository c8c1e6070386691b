"""A learner of a tiny network, and batches for it: training without a stage around it."""

import json

import torch

from pipeline.config import Config
from pipeline.data.loaders.base import Batch
from pipeline.execution.world import World
from pipeline.training.cost import Cost
from pipeline.training.learner import Learner
from pipeline.training.pace import Pace
from tests.runs import composed

ALONE = World(rank=0, world_size=1, device=torch.device("cpu"), hang_timeout=60)


def learner(*overrides, saved=None):
    """Return a learner, begun anew or from a state."""
    config = Config.model_validate(
        json.loads(composed("model.widths=[[4],[4]]", "data.image_size=8", *overrides))
    )
    torch.manual_seed(0)
    pace = Pace(config.train, 10, Cost(config, 3, None))
    made = Learner(config, ALONE, classes=3, pace=pace, saved=saved or {})
    if saved:
        made.load_state(saved)
    made.wrap()
    made.train()
    return made


def batch(number=0, size=6):
    """Return random images with labels."""
    drawn = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 8, 8, generator=drawn)
    return Batch(images, torch.arange(size) % 3, torch.arange(size))
