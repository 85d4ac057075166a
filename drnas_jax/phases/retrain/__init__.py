"""Retraining of the derived network: its inputs, its step, and the phase that runs it."""
