"""Recipes: one file each; `base.py` lists and explains all fields."""
