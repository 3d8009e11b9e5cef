"""Benchmarks: `python -m kernels.bench COMMAND` times ops beside their rivals.

`registry` knows the ops, `timing` takes the times, `report` prints and saves them; an op adds
itself by a function in a module of its own, which `__main__` imports.
"""
