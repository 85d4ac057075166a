"""Variants of recipes: the words after the colon in `--config=FILE:VARIANT`."""

from collections.abc import Sequence

from drnas_jax.errors import UserError


def parse_variant(variant: str, *groups: Sequence[str]) -> list[str]:
    """Returns the word of each group that a variant names, or '' for a group without one.

    For example, `parse_variant("smoke,darts", ("cpu", "smoke"), ("darts", "snas"))` returns
    `["smoke", "darts"]`.

    Args:
      variant: Words separated by commas, in any order; may be empty.
      *groups: Words of which a variant may name one each.

    Raises:
      UserError: A word is in no group, or two are in the same group.
    """
    words = variant.split(",") if variant else []
    for word in words:
        if not any(word in group for group in groups):
            named = repr(word) if word == variant else f"{word!r} in {variant!r}"
            choices = [f"one of {', '.join(group)}" for group in groups]
            if len(groups) > 1:
                choices.append("one of each")
            raise UserError(f"unknown variant {named}: choose {', or '.join(choices)}")
    chosen = []
    for group in groups:
        first, *others = [word for word in words if word in group] or [""]
        if others:
            raise UserError(
                f"variant {variant!r} names {first!r} and {others[0]!r}: give one of "
                f"{', '.join(group)}"
            )
        chosen.append(first)
    return chosen
