"""Parts that the phases share: devices, hosts, checkpoints, optimisers, losses, random keys."""
