"""Markdown tables, and docstrings as the text of their cells."""

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that ends with a newline. Each `|` inside a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * len(heads))
    return "\n".join(lines) + "\n"


def one_line(text: str | None) -> str:
    """Return the paragraphs of a docstring on one line."""
    return " ".join((text or "").split())
