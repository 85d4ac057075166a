"""The one kind of error that a user can fix."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the command, the config or a file that the user can fix.

    `drnas_jax.main` prints it as one line and exits with code 2; the library raises it unchanged.
    The message names the value, what was expected, and what to do.
    """


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises a UserError that lists the choices, unless `value` is one of them."""
    choices = sorted(choices)
    if value not in choices:
        raise UserError(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
