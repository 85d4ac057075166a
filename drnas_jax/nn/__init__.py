"""Flax (linen) modules: kernels, normalisation, and the operations of supernets and networks."""
