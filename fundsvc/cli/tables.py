"""Tables of results: whole words at any width, on a terminal and in a pipe."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Column, Table


def show_table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table. No cell is cut or wrapped, so that symbols, accounts and amounts can be read and copied.

    In a pipe the lines are as long as they must be. On a terminal that is too narrow, each row is a block of lines, one for
    each cell that is not empty.
    """
    table = Table(
        *columns,
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for row in rows:
        table.add_row(*row)
    width = console.measure(table, options=console.options.update(width=_LINE_MAX)).maximum
    if console.is_terminal and width > console.width:
        _show_blocks(console, [str(column.header) for column in columns], rows)
    else:
        console.width = max(width, console.width)
        console.print(table)


def left(*names: str) -> list[Column]:
    """Returns columns of words."""
    return [Column(name, no_wrap=True) for name in names]


def right(*names: str) -> list[Column]:
    """Returns columns of numbers, which are aligned to the right."""
    return [Column(name, justify="right", no_wrap=True) for name in names]


_LINE_MAX = 10_000
"""Longer than any row."""


def _show_blocks(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    wide = max(map(len, headers))
    for row in rows:
        for header, cell in zip(headers, row, strict=False):
            if cell:
                console.print(f"{header:<{wide}}  {cell}", soft_wrap=True)
        console.print()
