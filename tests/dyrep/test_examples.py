"""Test the examples that use the library with timm and with Lightning."""

import pytest
import torch
from torch import nn

import dyrep
from examples import timm_network
from tests.dyrep.networks import example, network, optimizer_for

pytestmark = pytest.mark.long


def test_a_timm_network_grows_and_resumes_from_its_checkpoint_with_the_same_bits(capsys):
    timm_network.main()
    printed = capsys.readouterr().out
    assert printed.count("grow ") == 3
    assert "the same bits" in printed
    assert "fused: " in printed


def test_a_lightning_trainer_grows_a_network_and_resumes_from_its_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning")
    from examples.lightning_callback import DyRepCallback, restore

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def on_load_checkpoint(self, checkpoint):
            restore(self.network, checkpoint)

        def configure_optimizers(self):
            return optimizer_for(self)

    def fit(epochs, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
            callbacks=[DyRepCallback("network", adjust_interval=1)],
        )  # fmt: skip
        module = Module()
        loader = torch.utils.data.DataLoader([*zip(*example(), strict=True)], batch_size=8)
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer, module

    trainer, module = fit(1)
    assert len(dyrep.structure(module.network)["blocks"]) == 1
    trainer.save_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    loaded = Module.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=False)
    assert dyrep.structure(loaded.network) == dyrep.structure(module.network)
    own = module.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())
    _, resumed = fit(2, tmp_path / "one.ckpt")
    _, straight = fit(2)
    assert dyrep.structure(resumed.network) == dyrep.structure(straight.network)
    theirs = resumed.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in straight.state_dict().items())
