"""Simulated robots to collect data from, to plan for and to measure with. Needs `[sim]`: MuJoCo."""
