"""Tables on a terminal and in Markdown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_UNLIMITED_WIDTH = 10_000


class Table(NamedTuple):
    """A table before it is drawn.

    Attributes:
        title: above it.
        headings: of the columns; may have several lines.
        rows: of words and numbers as they are shown.
        notes: below it.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]
    notes: list[str]


def markdown(table: Table) -> str:
    """A table with its notes, under a heading."""
    lines = [table.headings, ["---"] * len(table.headings), *table.rows]
    body = "".join(f"| {' | '.join(map(_escape, line))} |\n" for line in lines)
    notes = "".join(f"\n- {note}" for note in table.notes)
    return f"## {table.title}\n\n{body}" + (f"{notes}\n" if notes else "")


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def show(tables: Sequence[Table], last_line: str) -> None:
    """Print tables with their notes, and a line below them all."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        # A file or a pipe has no edge to wrap at.
        console.width = _UNLIMITED_WIDTH
    for table in tables:
        console.print(_rich_table(table))
        for note in table.notes:
            console.print(Text(note, "red"), soft_wrap=True)
    console.print(Text(last_line), soft_wrap=True)


def _rich_table(table: Table) -> "RichTable":
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(table.title, "bold"),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
    )
    for heading, cells in zip(table.headings, zip(*table.rows, strict=True), strict=True):
        # Words may wrap in a narrow window, numbers may not.
        numbers = not any(cell[:1].isalpha() for cell in cells)
        drawn.add_column(Text(heading), no_wrap=numbers, overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row), style="red" if "failed" in row else None)
    return drawn
