"""Simulated robots to collect data from, to plan for and to measure with. Needs `[sim]`: MuJoCo.

Nothing here imports JAX but `evaluate`, so that processes that only collect start at once.
"""
