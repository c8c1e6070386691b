"""Build a learner of a tiny network and its batches, for tests that train without a stage."""

import json

import torch

from pipeline.config import Config
from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.planning import compose
from pipeline.records import rundir
from pipeline.training.cost import Cost
from pipeline.training.learner import Learner
from pipeline.training.pace import Pace
from tests.runs import composed

STEPS = 6  # per epoch
RGB = ("model.widths=[[4],[4]]", "data.image_size=8", "data.channels=3")
TINY = (*RGB, "train.batch_size=6", "name=x")
ALONE = World(rank=0, world_size=1, device=torch.device("cpu"), hang_timeout=60)


def learner(*overrides, saved=None):
    """Return a learner of a tiny network, fresh or restored from a saved state."""
    config = Config.model_validate(json.loads(composed(*RGB, *overrides)))
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


class Numbered:
    """A loader whose batches depend only on their number; its state is the last number."""

    kind = "numbered"

    def __init__(self, state):
        self.at = 0 if state is None else int(state)

    def __len__(self):
        return STEPS

    def __iter__(self):
        while True:
            self.at += 1
            yield batch(self.at)
            if self.at % STEPS == 0:
                return

    def state(self):
        return torch.tensor(self.at)


class Images:
    """A stand-in for `training.images.Images` that yields random batches."""

    classes, seed = 3, 0

    def __init__(self, *_):
        pass

    def training(self, since=0, state=None):
        return Numbered(state)

    def validation(self):
        return [batch(1000, 12)]

    def calibration(self, count, epoch, check_stop):
        self.drawn = count
        return [batch(1000 + number).images for number in range(count)]

    def apart(self, count, epoch, check_stop):
        for number in range(count):
            check_stop()
            yield batch(2000 + 10 * epoch + number).images

    def chosen(self, used):
        return "numbered"


def equal(one, other):
    one, other = one.state.learner.state(), other.state.learner.state()
    weights = zip(one["model"].items(), other["model"].items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in weights)
    assert one["schedule"]["_last_lr"] == other["schedule"]["_last_lr"]


def rows(training, name):
    return list(rundir.read_lines(training.context.dir / name))


def checked(*overrides):
    """Return the checked configuration of a tiny training."""
    return compose.validated(json.loads(composed(*TINY, *overrides)))
