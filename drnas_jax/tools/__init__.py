"""Commands that are not phases: benchmarks, planning for TPUs, import of weights from PyTorch."""
