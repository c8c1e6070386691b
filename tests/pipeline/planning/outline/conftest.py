"""Write a module `mine` with valid and invalid networks of the user, for each test in this folder."""

import sys

import pytest

NETS = """
import threading
import torch
from torch import nn

def net(num_classes=10, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

def ten(): return net(10)

def needs_values(num_classes):
    return net(num_classes, int(torch.linspace(1, 8, 5)[3].item()))

def sized(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def empty(num_classes): return nn.Flatten()
def number(num_classes): return 3
def kind(num_classes): return nn.ReLU

class Pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = net(num_classes)
    def forward(self, x): return self.net(x), None

class Spare(Pair):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.spare = nn.Linear(3, 3)
    def forward(self, x): return self.net(x)

class Locked(Pair):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.lock = threading.Lock()
    def forward(self, x): return self.net(x)

class Twice(Locked):
    def __init__(self, num_classes):
        Pair.__init__(self, num_classes)
        self.again = self.net

class Noted(Twice):
    def __init__(self, num_classes):
        Pair.__init__(self, num_classes)
    def get_extra_state(self): return "note"
    def set_extra_state(self, state): pass

class Deaf(Locked):
    def __init__(self, num_classes, how="detach"):
        Pair.__init__(self, num_classes)
        self.how = how
        self.net.requires_grad_(how != "frozen")
    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(x)
        if self.how == "inplace":
            y = self.net(x).exp()
            return y.mul_(2).add_(y)
        if self.how == "integers":
            return self.net(x).long()
        return self.net(x).detach() if self.how == "detach" else self.net(x)

class Props(Locked):
    def __init__(self, num_classes):
        Pair.__init__(self, num_classes)
    def state_dict(self, *args, **kwargs): raise KeyError("mine")

made = []
def moody(num_classes):
    made.append(0)
    return net(num_classes, 4 + len(made))
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(NETS)
    yield
    sys.modules.pop("mine", None)
