"""V-JEPA 2 in JAX: pretrain, probe, plan, and carry weights to PyTorch and back."""

__version__ = '0.1.0'
