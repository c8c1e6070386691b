"""Hold the body of each stage, in the module of its name, and the modules that it works with.

`execution.work` imports a body when its stage runs; nothing else does.
"""
