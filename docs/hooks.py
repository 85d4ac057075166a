"""Fills in the table of all config fields when MkDocs builds the pages."""

from typing import Any

from drnas_jax import config

_MARK = "<!-- fields of the config -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the mark on a page by a table for each group of fields."""
    return markdown.replace(_MARK, fields()) if _MARK in markdown else markdown


def fields() -> str:
    """Returns the tables of all fields with their defaults and meanings, as Markdown."""
    rows: dict[str, list[str]] = {}
    for name, declared in config.schema():
        group = name.rpartition(".")[0]
        meaning = declared.metadata["meaning"].replace("|", "\\|")
        default = "" if name in config.OPTIONS else f"`{declared.default!r}`"
        rows.setdefault(group, []).append(f"| `{name}` | {default} | {meaning} |")
    lines = []
    for group, found in rows.items():
        if group:
            summary = (config.GROUPS[group].__doc__ or "").splitlines()[0]
            lines += ["", f"#### {group}", "", summary]
        lines += ["", "| field | default | meaning |", "|---|---|---|", *found]
    return "\n".join(lines)
