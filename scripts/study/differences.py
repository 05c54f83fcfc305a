"""The results of a study: means over seeds, and differences paired by seed, with 95 % intervals (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from design import control
from scipy import stats


@dataclass(frozen=True)
class Result:
    """One run: its arm, seed, samples added to the base set, and {measure: number}."""

    arm: str
    seed: int
    added: int
    measures: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """Returns the mean of values, one a seed; the interval is Student's with n - 1 degrees of freedom.

        The values 1, 2, 3 give 2 (-0.48 to 4.48).
        """
        n, mean = len(values), sum(values) / len(values)
        if n < 2:
            return cls(mean, -math.inf, math.inf, n)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Row:
    """One arm and measure: its mean, and its differences to other arms, paired by seed."""

    arm: str
    measure: str
    own: Cell
    differences: dict[str, Cell]
    per_1000: float | None  # difference to the first arm compared with, for 1,000 added samples


def rows(results: Sequence[Result], arms: Sequence[str], compare: Sequence[str], mean: Sequence[str] = ()) -> list[Row]:
    """Returns the rows of all arms and of the measures they have; `mean` is the mean of the measures named."""
    of = {(one.arm, one.seed): dict(one.measures) for one in results}
    for measures in of.values() if mean else ():
        measures["mean"] = sum(measures[name] for name in mean) / len(mean)
    added = {one.arm: one.added for one in results}
    names = list(dict.fromkeys(name for measures in of.values() for name in measures))
    table = []
    for measure in names:
        having = {arm: [seed for a, seed in of if a == arm and measure in of[a, seed]] for arm in arms}
        for arm in [arm for arm in arms if having[arm]]:
            differences = {}
            for name in compare:
                other = control(name, arm, arms)
                if other is not None and set(having[arm]) <= set(having[other]):
                    gains = [of[arm, seed][measure] - of[other, seed][measure] for seed in having[arm]]
                    differences[name] = Cell.of(gains)
            first = next(iter(differences.values()), None)
            per_1000 = first.mean / added[arm] * 1000 if first is not None and added[arm] else None
            own = Cell.of([of[arm, seed][measure] for seed in having[arm]])
            table.append(Row(arm, measure, own, differences, per_1000))
    return table


def text(table: Sequence[Row], compare: Sequence[str]) -> str:
    """Returns the rows as a text table, in percentage points."""
    head = ["measure", "arm", "mean", "95 % interval"]
    for other in compare:
        head += [f"minus {other}", "95 % interval"]
    lines = [[*head, "per 1,000 samples"]]
    for row in table:
        line = [row.measure, row.arm, f"{row.own.mean:.1%}", f"{row.own.low:.1%} to {row.own.high:.1%}"]
        for other in compare:
            cell = row.differences.get(other)
            line += ["", ""] if cell is None else [f"{100 * cell.mean:+.1f}", _interval(cell)]
        lines.append([*line, "" if row.per_1000 is None else f"{100 * row.per_1000:+.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = 2  # columns, aligned left
    aligned = []
    for line in lines:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[:names] = [cell.ljust(width) for cell, width in zip(line[:names], widths, strict=False)]
        aligned.append("  ".join(padded).rstrip())
    return "\n".join(aligned)


def _interval(cell: Cell) -> str:
    return f"{100 * cell.low:+.1f} to {100 * cell.high:+.1f}"
