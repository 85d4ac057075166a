"""The bilevel search: its inputs, state, step and stages, and the phase that runs them."""
