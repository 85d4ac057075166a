"""The bilevel search: state, step, stages, and the controller that drives them."""
