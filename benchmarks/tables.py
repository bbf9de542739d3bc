"""The tables that the benchmarks print, for the console and for a document."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.cases import CLIENTS
from benchmarks.results import Measurement, Size, find, ratio
from benchmarks.roster import OURS


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: what the cells are.
        columns: headings; the first is of the rows' names.
        rows: a name and its cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_rich(self) -> Table:
        """For the console."""
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """For a document."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"\n{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def wide_console() -> Console:
    """A console on which the tables fit, also where it is a file and has no width of its own."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=120)


def speed_tables(measured: Sequence[Measurement]) -> list[Sheet]:
    """Ratios first, then times and rates, then what a process costs."""
    sheets = []
    for sampled in sorted({one.sampled for one in measured}, reverse=True):
        own = [one for one in measured if one.sampled == sampled]
        title = f"{sampled} of {CLIENTS} clients"
        if ours := find(own, OURS):
            sheets.append(_by_case(f"{title}: seconds per round, in ours", own, _multiple(ours)))
        sheets.append(_by_case(f"{title}: milliseconds per round", own, _milliseconds))
        sheets.append(_by_case(f"{title}: client updates per second", own, _rate))
    return [*sheets, _processes(measured)]


def scale_tables(sizes: Sequence[Size]) -> list[Sheet]:
    """A table for each series."""
    columns = [
        "clients", "of them a round", "ms per round", "us per client update",
        "seconds to the first finished round", "peak MB",
    ]  # fmt: skip
    return [
        Sheet(part, columns, [_size_row(size) for size in sizes if size.part == part])
        for part in dict.fromkeys(size.part for size in sizes)
    ]


def _size_row(size: Size) -> list[str]:
    middle = median(size.seconds)
    return [
        f"{size.clients:,}", f"{size.sampled:,}", significant(1e3 * middle),
        significant(1e6 * middle / size.sampled), significant(size.startup), f"{size.peak_mb:,.0f}",
    ]  # fmt: skip


def _multiple(ours: dict[tuple[str, str, int], Measurement]) -> Callable[[Measurement], str]:
    return lambda one: significant(ratio(one, ours[one.case])) if one.case in ours else ""


def _milliseconds(one: Measurement) -> str:
    return significant(1000 * median(one.seconds))


def _rate(one: Measurement) -> str:
    return f"{one.sampled / median(one.seconds):,.0f}"


def _by_case(
    title: str, measured: Sequence[Measurement], cell: Callable[[Measurement], str]
) -> Sheet:
    """A row per side, a column per data set and model."""
    cases = list(dict.fromkeys((one.data, one.model) for one in measured))
    by_place = {(one.side, one.data, one.model): cell(one) for one in measured}
    return Sheet(
        title,
        ["", *(f"{data} {model}" for data, model in cases)],
        [[side, *(by_place.get((side, *case), "") for case in cases)] for side in _sides(measured)],
    )


def _processes(measured: Sequence[Measurement]) -> Sheet:
    """Start-up and memory of each side: medians over all cases."""
    rows = []
    for side in _sides(measured):
        own = [one for one in measured if one.side == side]
        startup, peak = median(one.startup for one in own), median(one.peak_mb for one in own)
        rows.append([side, significant(startup), f"{peak:,.0f}", str(len(own))])
    columns = ["", "seconds to the first finished round", "peak MB", "starts"]
    return Sheet("processes, medians over all cases", columns, rows)


def _sides(measured: Sequence[Measurement]) -> list[str]:
    return list(dict.fromkeys(one.side for one in measured))


def significant(value: float) -> str:
    """Three decimals below one, two below ten, one below a hundred, none above."""
    return f"{value:.{sum(value < limit for limit in (1, 10, 100))}f}"
