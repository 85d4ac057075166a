"""Rules that decide at the end of an epoch: `selection` of the genotype, and early `stopping`."""
