"""The body of each stage, in the module of its name; `run` alone imports them."""
