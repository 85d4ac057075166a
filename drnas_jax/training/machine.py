"""What this machine has."""

import os


def cores() -> int:
    """The CPU cores that this process may use, which a job's own may be less than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
