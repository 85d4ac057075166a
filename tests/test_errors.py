"""The messages that a user can meet: all have one form, and say what to do.

`python tests/test_errors.py` prints them all, so that a person can read them in one go.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for name in ("drnas_jax", "configs") for path in (ROOT / name).rglob("*.py"))
# Errors that are printed as one line, and the functions that make one from its parts.
ERRORS = (
    *("UserError", "NotEnoughMemoryError", "NotPreparedError", "UnreadableImage"),
    "ServiceError",
)

# A message begins in lower case, or with a value, a flag or a name that is written so.
BEGIN = re.compile(r"[a-z{]|--[\w{]|(TFDS|JAX|NATS-Bench|Options)\b")
REMEDIES = (
    *("add", "check", "choose", "convert", "correct", "divide", "download", "evaluate", "expected"),
    *("fix", "get", "give", "keep", "leave", "lower", "make", "measure", "mount", "move", "name"),
    *("pip install", "prepare", "put", "raise", "remove", "rename", "replace", "resize", "restore"),
    *("run", "set", "start", "take", "unpack", "use", "wait", "write", "define", "must be"),
    *("enlarge", "upgrade", "usage", "flags begin with"),
)
# An imperative, what was expected, or a value whose name shows that it says what to do.
REMEDY = re.compile(
    rf"(^|[:;,.(] )(so |or )?({'|'.join(REMEDIES)}|\{{(expected|choice|what|advice|_EXAMPLE))",
    re.I,
)
# Messages whose last words come from elsewhere, and say what to do there if anybody can.
PASSED_ON = {
    "{_line(error)} (--help lists all)",
    "config field {name}: {' '.join(str(error).split())}",
    "seed {thread.run.config.seed}: {thread.error}",
    "the config in {file} cannot be used: {error}",
    "the recipe {name} fails: {components.failure(error)}",
    "{field} is {name}, which fails to import: {failure(error)}",
    "{type(error).__name__}: {error}",
}
DIALECT = re.compile(
    r"\b(anew|mend(s|ed|ing)?|so many|tells?|stands? (at|for)|goes on|without a word|all else"
    r"|(?<!there )is no (?!longer)\w+|likewise|the user)\b",
    re.I,
)


def text_of(node):
    """Returns a message with `{expression}` for each value, or None if it is not written here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    return None


def messages(files=FILES):
    """Yields the place and the text of each message."""
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name in ERRORS and node.args:
                text = text_of(node.args[0])
                if text is not None:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def faults(text):
    """Returns what is wrong with the form of a message."""
    checks = {
        "begins in upper case": not BEGIN.match(text),
        "ends with a punctuation mark": text.endswith((".", "!", ":", ",", ";")),
        "has a line break or two spaces": bool(re.search(r"\n|  ", text)),
        "names no value, field or flag": not re.search(r"\{|--\w|\w[._]\w|\d|'", text),
        "says not what to do": not REMEDY.search(text) and text not in PASSED_ON,
        "is not plain English": bool(DIALECT.search(re.sub(r"\{[^}]*\}", "X", text))),
    }
    return [fault for fault, found in checks.items() if found]


def test_all_messages_have_one_form():
    # Would catch a message without a value or a remedy, and one in another style than the others.
    found = dict(messages())
    assert len(found) > 200  # else they are not found
    wrong = {place: (faults(text), text) for place, text in found.items() if faults(text)}
    assert not wrong, "\n".join(f"{place} {fault}" for place, fault in wrong.items())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Config field {x} is {y}: expected 1", "begins in upper case"),
        ("{x} is {y}: expected 1.", "ends with a punctuation mark"),
        ("the images are empty: add some", "names no value, field or flag"),
        ("{x} cannot be read ({error})", "says not what to do"),
        ("{x} is no folder: give one", "is not plain English"),
    ],
)
def test_a_bad_message_is_found(text, fault):
    # Would catch a check that no message can fail.
    assert faults(text) == [fault]


if __name__ == "__main__":
    for place, text in messages():
        print(
            place, " ".join(text.split()), *(f"<-- {fault}" for fault in faults(text)), sep="\n  "
        )
