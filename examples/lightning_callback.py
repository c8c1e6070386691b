"""DyRep as a Lightning callback: it grows while a Trainer trains, and checkpoints load again.

The package is `lightning`; it is not among the requirements of this project.

    trainer = lightning.Trainer(callbacks=[DyRepCallback("network", adjust_interval=5)])
    trainer.fit(module, loader, ckpt_path=...)

The module gives its network the structure before Lightning loads the weights:

    def on_load_checkpoint(self, checkpoint):
        restore(self.network, checkpoint)
"""

from typing import Any

import lightning
from torch import Tensor, nn
from torch.optim import Optimizer

import dyrep

KEPT = 4  # batches of an epoch that set statistics


def restore(network: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Give a fresh network the blocks that a checkpoint has weights for."""
    dyrep.apply_structure(network, checkpoint["dyrep"]["structure"])


class DyRepCallback(lightning.Callback):
    """Watches, grows and cuts one network of a LightningModule, on one device.

    Args:
        network: Attribute of the LightningModule that holds the network.
        options: Of `dyrep.DyRep`.
    """

    def __init__(self, network: str, **options: Any) -> None:
        self.network, self.options = network, options
        self.evolver: dyrep.DyRep | None = None
        self._seen: list[Tensor] = []
        self._saved: dict[str, Any] | None = None

    def setup(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str
    ) -> None:
        """Refuse several devices: Lightning keeps the DDP it made at the start."""
        if trainer.world_size > 1:
            raise ValueError("DyRepCallback works on one device: Lightning cannot wrap DDP again")

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, saved: dict[str, Any]
    ) -> None:
        """Keep what a checkpoint knows of the interval it was written in."""
        self._saved = saved["dyrep"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Begin to watch, or go on."""
        model = getattr(module, self.network)
        self.evolver = dyrep.DyRep(model, trainer.optimizers[0], **self.options)
        if self._saved:
            self.evolver.load_state_dict(self._saved["evolver"])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, index: int
    ) -> None:
        """Keep the inputs of a few batches."""
        self._seen = [*(self._seen if index else []), batch[0].detach()][:KEPT]

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the gradients, which are unscaled here."""
        assert self.evolver is not None
        self.evolver.accumulate()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        """Grow and cut when due; before the checkpoint of the epoch is written."""
        assert self.evolver is not None
        if self.evolver.due(trainer.current_epoch):
            self.evolver.adjust(self._seen)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, saved: dict[str, Any]
    ) -> None:
        """Write what grew beside the weights."""
        assert self.evolver is not None
        saved["dyrep"] = {
            "structure": dyrep.structure(getattr(module, self.network)),
            "evolver": self.evolver.state_dict(),
        }
