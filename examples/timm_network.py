"""A timm network grows with timm's own average, stops, and goes on from its checkpoint.

python -m examples.timm_network
"""

import tempfile
from pathlib import Path

import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import dyrep

NAME, CLASSES = "resnet10t", 4


class Training:
    """What a checkpoint has to bring back: network, average, optimizer and what grew."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        saved = torch.load(checkpoint, weights_only=True) if checkpoint else None
        self.model = timm.create_model(NAME, num_classes=CLASSES)
        if saved:  # the structure first: then everything loads strictly
            dyrep.apply_structure(self.model, saved["structure"])
        self.ema = ModelEmaV3(self.model, decay=0.9)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.evolver = dyrep.DyRep(self.model, self.optimizer, ema=self.ema, adjust_interval=1)
        if saved:
            self.model.load_state_dict(saved["model"])
            self.ema.module.load_state_dict(saved["ema"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.evolver.load_state_dict(saved["evolver"])

    def save(self, checkpoint: Path) -> None:
        """Write all of it."""
        parts = {
            "structure": dyrep.structure(self.model),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "evolver": self.evolver.state_dict(),
        }
        torch.save(parts, checkpoint)

    def epoch(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Train on every batch once, then grow."""
        self.model.train()
        for images, labels in batches:
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.evolver.accumulate()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(self.model)
        for event in self.evolver.adjust(calibration=[images for images, _ in batches]):
            print(f"  {event.action} {event.layer}: {', '.join(event.branches)}")


def main() -> None:
    """Two epochs in one go on, and the second of them again from a checkpoint."""
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % CLASSES) for _ in range(2)]
    training = Training()
    training.epoch(batches)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        training.save(checkpoint)
        resumed = Training(checkpoint)
    for each in (training, resumed):
        each.epoch(batches)
    deployed = dyrep.fuse(training.ema.module.eval(), inputs=batches[0][0])
    same = all(
        map(torch.equal, training.model.state_dict().values(), resumed.model.state_dict().values())
    )
    print(f"resumed: {'the same bits' if same else 'other weights'}")
    print(f"fused: {sum(p.numel() for p in deployed.parameters()):,} parameters")


if __name__ == "__main__":
    main()
