"""train: train with DistributedDataParallel, while DyRep grows and cuts branches.

Reads the prepared data. Writes history.jsonl, growth.jsonl and checkpoints/; at the end also
model.safetensors (all branches; averaged weights with train.ema) and structure.json (which
branches). A stop request makes it save and exit soon; the next start resumes from the newest intact
checkpoint.
"""

from __future__ import annotations

from pipeline.contract.stage import Context
from pipeline.contract.world import world
from pipeline.data.shards import Manifest
from pipeline.display.errors import UserError
from pipeline.networks import optimizers, trial
from pipeline.training import eager, replay
from pipeline.training.loop import Training
from pipeline.training.nonfinite import NotFinite


def run(context: Context) -> dict[str, float]:
    """Train; return the headline metrics of the shipped network.

    Raises:
        UserError: a setting does not suit the images or this machine.
        Interrupted: a stop was requested; everything so far is saved.
        Diverged: the loss is not finite; the message names step and layer.
    """
    images = Manifest.load(context.parents["prep"] / "data").splits["train"].images
    batch = context.config.train.batch_size
    if batch > images:
        raise UserError(f"train.batch_size={batch} is larger than the {images} training images")
    if optimizers.needs_gpu(context.config.train.optimizer):  # the launch may not have had a GPU
        trial.attempt(context.config.train, context.config.method)
    if context.config.train.compile == "off":
        eager.put_off_compiler()
    with world(context.config.cluster.hang_timeout) as processes:
        try:
            return Training(context, processes).run()
        except NotFinite as found:
            step = found.step  # the failed training is freed before it is repeated
        raise replay.explain(context, processes, step)
