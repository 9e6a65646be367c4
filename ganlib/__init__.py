"""ganlib: generative adversarial networks as games, on plain PyTorch.

This package imports neither Ray, DVC nor MLflow; the package `pipelines` does.
"""

__version__ = "0.1.0"
