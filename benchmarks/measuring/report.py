"""Medians, ratios per round, and a table in plain text."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

import attrs

PACKAGES = ("aioquic", "qh3", "dialkey-native", "cryptography", "iroh", "blake3")


@attrs.define
class Series:
    """What one stack reached in the rounds of one measurement; None where it failed.

    Attributes:
        values: one per round, in the measurement's unit.
        cpu_us: processor time of both sides together for one unit of work, per round.
        error: why it failed last, if it did.
    """

    values: list[float | None] = attrs.field(factory=list)
    cpu_us: list[float | None] = attrs.field(factory=list)
    error: str = ""

    def add(self, value: float, cpu_us: float | None) -> None:
        self.values.append(value)
        self.cpu_us.append(cpu_us)

    def fail(self, error: str) -> None:
        self.values.append(None)
        self.cpu_us.append(None)
        self.error = error


@attrs.frozen
class Spread:
    """A median with the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        found = [value for value in values if value is not None]
        return cls(median(found), min(found), max(found)) if found else None


@attrs.define
class Measurement:
    """One figure of all stacks.

    Attributes:
        subject: the stack whose ratios to the others are of interest.
        cpu_unit: for what the processor time is counted, such as "MB".
        smaller_is_better: ratios tell by how much the subject is better, so they are turned round.
    """

    key: str
    title: str
    unit: str
    cpu_unit: str = ""
    subject: str = "dialkey"
    smaller_is_better: bool = False
    series: dict[str, Series] = attrs.field(factory=dict)

    def ratios(self, numerator: str, denominator: str) -> list[float | None]:
        """Return `numerator` over `denominator`, round by round."""
        if numerator not in self.series or denominator not in self.series:
            return []
        pairs = zip(self.series[numerator].values, self.series[denominator].values, strict=False)
        return [a / b if a is not None and b else None for a, b in pairs]

    def lead(self, other: str) -> Spread | None:
        """Return how many times better the subject is than another stack."""
        if self.smaller_is_better:
            return Spread.of(self.ratios(other, self.subject))
        return Spread.of(self.ratios(self.subject, other))

    def as_json(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, series in self.series.items():
            spread = Spread.of(series.values)
            lead = self.lead(name)
            found[name] = {
                "values": series.values,
                "cpu_us": series.cpu_us,
                "spread": attrs.asdict(spread) if spread else None,
                "subject_over_this": attrs.asdict(lead) if lead else None,
                "error": series.error or None,
            }
        return {"key": self.key, "title": self.title, "unit": self.unit, "stacks": found}


@attrs.frozen
class Target:
    """A ratio or a size to reach."""

    what: str
    found: float | None
    wanted: float
    at_most: bool = False
    unit: str = "x"

    @property
    def is_met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def __str__(self) -> str:
        verdict = {True: "met", False: "missed", None: "not measured"}[self.is_met]
        found = "" if self.found is None else f"{_number(self.found)}{self.unit}"
        sign = "<=" if self.at_most else ">="
        return f"{self.what:<58} {sign} {_number(self.wanted)}{self.unit:<5} {found:>10}  {verdict}"

    def as_json(self) -> dict[str, object]:
        return {**attrs.asdict(self), "met": self.is_met}


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{_number(spread.median)} ({_number(spread.low)}-{_number(spread.high)})"


def table(measurement: Measurement) -> str:
    """Return a measurement as lines of text."""
    cpu = f"CPU us per {measurement.cpu_unit}" if measurement.cpu_unit else ""
    rows = [("", f"{measurement.unit} (min-max)", f"{measurement.subject} is, times", cpu)]
    for name, series in measurement.series.items():
        spread = Spread.of(series.values)
        value = _spread(spread) if spread else f"failed: {series.error}"
        lead = "" if name == measurement.subject else _spread(measurement.lead(name))
        cost = Spread.of(series.cpu_us) if cpu else None
        rows.append((name, value, lead, _number(cost.median) if cost else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [measurement.title]
    for row in rows:
        name, *cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(["  " + name, *cells]).rstrip())
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "processor": f"{os.cpu_count()} x {model or platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": versions,
    }
