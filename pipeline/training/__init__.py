"""Train a network: the loop, and the optimizer, growth, checkpoints and history that it uses."""
