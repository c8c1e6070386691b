"""Tables of docs/results.md, one command each: sweeps that go on where they stopped."""
