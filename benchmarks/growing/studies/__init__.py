"""Make tables of docs/results.md, one command each, by sweeps that can be stopped and continued."""
