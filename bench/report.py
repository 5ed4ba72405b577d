"""What every benchmark says besides its figures: on which machine, and beside which bounds."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)


@dataclass(frozen=True)
class Bound:
    """A figure that must hold."""

    what: str
    figure: float
    unit: str
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Whether the figure keeps its limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def machine() -> dict[str, object]:
    """Return what ran, on what; never a name of the machine."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    found: dict[str, object] = {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }
    for name in ("mooncake-hicache", "sglang", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def median_of(cells: Sequence[object], field: str, **wanted: object) -> float | None:
    """The median over the rounds of one field of one shape; None if it was not measured."""
    found = [
        float(getattr(cell, field))
        for cell in cells
        if all(getattr(cell, name) == value for name, value in wanted.items())
    ]
    return statistics.median(found) if found else None


def show_bounds(bounds: Sequence[Bound]) -> bool:
    """Print the bounds with a mark each; return whether all hold."""
    table = Table(title="Must hold", title_justify="left")
    table.add_column("what")
    for column in ("figure", "bound", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for one in bounds:
        sign = "≥" if one.at_least else "≤"
        mark = "[green]✓[/]" if one.holds else "[red]✗[/]"
        unit = f" {one.unit}" if one.unit else ""
        table.add_row(one.what, f"{one.figure:.4g}{unit}", f"{sign} {one.limit:g}{unit}", mark)
    console.print(table)
    return all(one.holds for one in bounds)


def write_json(path: Path, figures: Mapping[str, object], bounds: Sequence[Bound]) -> None:
    """Write figures and bounds."""
    marked = [asdict(one) | {"holds": one.holds} for one in bounds]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**figures, "bounds": marked}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    console.print(f"written {path}")
