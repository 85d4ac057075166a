"""The phases of a run, in order: search, retrain, evaluate; and the loop that drives them."""
