"""The body of each stage, in the module of its name, and what it works with.

`execution.work` imports a body when its stage runs; nothing else does.
"""
