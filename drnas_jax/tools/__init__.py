"""Commands beside the phases: benchmarks, TPU planning, weights from PyTorch."""
