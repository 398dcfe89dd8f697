"""Prometheus' text format for what exists once per contract.

prometheus_client makes an object of every sample and formats each label anew; a thousand contracts are forty thousand samples,
which takes it most of a second. Here labels are text that is made once, and a sample is one formatted line.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

Row = TypeVar("Row")

ROWS_PER_TURN = 200
"""A tenth of a millisecond's work."""


class Family(NamedTuple, Generic[Row]):
    """What is shown under one name, one sample for each row whose value is not None; `labels` reads a row's own labels.

    Families that follow each other under the same name are told apart by a further label's text in `label`.
    """

    name: str
    kind: Literal["counter", "gauge"]
    documentation: str
    labels: Callable[[Row], str]
    value: Callable[[Row], float | None]
    label: str = ""


def labels_text(**labels: str) -> str:
    """Labels as they stand between the braces."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def exposition(families: Iterable[Family[Row]], rows: Sequence[Row]) -> str:
    """The families, with a head for each name and a line for each sample."""
    return "".join(_lines(families, rows))


def yielding(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, making way for other threads now and then.

    A thread that computes lets go of the interpreter only after its switch interval of five milliseconds, which every step of
    a loop in another thread would have to wait for.
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
