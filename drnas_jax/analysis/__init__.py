"""What a search did, from the files it left: no device, no training."""
