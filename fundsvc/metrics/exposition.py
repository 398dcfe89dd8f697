"""Prometheus' text format for metrics of contracts.

prometheus_client creates an object per sample and formats each label every time. A thousand contracts are forty thousand
samples, for which it needs most of a second. Here labels are formatted once, and a sample is one formatted line.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

Row = TypeVar("Row")

ROWS_PER_TURN = 200
"""Takes a tenth of a millisecond."""


class Family(NamedTuple, Generic[Row]):
    """A metric with one sample per row whose value is not None. `labels` returns a row's labels.

    Consecutive families of the same name differ in a further label, whose text is `label`.
    """

    name: str
    kind: Literal["counter", "gauge"]
    documentation: str
    labels: Callable[[Row], str]
    value: Callable[[Row], float | None]
    label: str = ""


def labels_text(**labels: str) -> str:
    """Returns labels as the exposition shows them between the braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def exposition(families: Iterable[Family[Row]], rows: Sequence[Row]) -> str:
    """Returns the text of families: a head per name, and a line per sample."""
    return "".join(_lines(families, rows))


def yielding(rows: Iterable[Row]) -> Iterator[Row]:
    """Yields the rows, and regularly lets other threads run.

    A computing thread keeps the interpreter for its switch interval of five milliseconds. Every step of an event loop in
    another thread would wait for that.
    """
    for place, row in enumerate(rows):
        if place % ROWS_PER_TURN == 0:
            time.sleep(0)
        yield row


def _lines(families: Iterable[Family[Row]], rows: Sequence[Row]) -> Iterator[str]:
    previous = ""
    for name, kind, documentation, labels, read, label in families:
        if name != previous:
            yield f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"
        previous = name
        for row in yielding(rows):
            value = read(row)
            if value is not None:
                yield f"{name}{{{labels(row)}{label}}} {value!r}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
