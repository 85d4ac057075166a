"""What phases share: devices, hosts, checkpoints, optimisers, losses, random keys."""
