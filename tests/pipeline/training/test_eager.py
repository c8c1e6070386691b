"""Test `training.eager`: torch's compiler is not imported before something uses it."""

import subprocess
import sys

import pytest

BEGIN = """
import sys, torch
from torch import nn
from pipeline.training import eager
eager.put_off_compiler()
network = nn.Linear(2, 2)
optimizer = torch.optim.AdamW(network.parameters())
optimizer.zero_grad()
network(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
assert 'sympy' not in sys.modules and 'torch._inductor' not in sys.modules
"""
THEN = {
    "a submodule": """
from torch._dynamo.exc import Unsupported
import torch._dynamo.utils
assert torch._dynamo.exc.Unsupported is Unsupported is sys.modules['torch._dynamo.exc'].Unsupported
assert torch._dynamo.utils.counters is sys.modules['torch._dynamo.utils'].counters
""",
    "torch.compile": """
twice = torch.compile(lambda x: 2 * x, backend="eager", fullgraph=True)
assert twice(torch.ones(1)) == 2
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
""",
}


@pytest.mark.long
@pytest.mark.parametrize("use", THEN)
def test_the_compiler_is_imported_when_it_is_used(use):
    done = subprocess.run([sys.executable, "-c", BEGIN + THEN[use]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
