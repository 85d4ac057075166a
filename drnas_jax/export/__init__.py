"""Writes trained networks in formats that other programs read."""
