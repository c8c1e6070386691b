"""DyRep in a plain PyTorch loop: no Hydra, no W&B, no SLURM. Runs in about a minute on a CPU.

python -m examples.plain_loop
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import dyrep

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
data = TensorDataset(images, torch.tensor(digits.target))
train, val = random_split(data, [1437, 360])
loader = DataLoader(train, batch_size=64, shuffle=True)
x, y = val[:]

layers: list[nn.Module] = []
for inputs, outputs in [(1, 32), (32, 32), (32, 64)]:
    layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
evolver = dyrep.DyRep(model, optimizer, adjust_interval=3, last_adjust_epoch=9)
for epoch in range(12):
    model.train()
    for inputs, labels in loader:
        nn.functional.cross_entropy(model(inputs), labels).backward()
        evolver.accumulate()
        optimizer.step()
        optimizer.zero_grad()
    if evolver.due(epoch):
        for event in evolver.adjust(calibration=[inputs for inputs, _ in loader]):
            print(f"  {event.action} {event.layer}: {', '.join(event.branches)}")
    model.eval()
    with torch.no_grad():
        top1 = (model(x).argmax(1) == y).float().mean().item()
    print(f"epoch {epoch + 1}: top-1 {100 * top1:.2f} %")

deployed = dyrep.fuse(model, inputs=x)
agreement = (deployed(x).argmax(1) == model(x).argmax(1)).float().mean().item()
before, after = dyrep.cost(model, x[:1]), dyrep.cost(deployed, x[:1])
print(f"fused: {before.parameters:,} → {after.parameters:,} parameters, agreement {agreement:.0%}")
