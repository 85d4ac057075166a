"""Ground truth: what architectures of a space really reach."""
