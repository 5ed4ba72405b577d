"""What a check of the doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check"]


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    verdict: Literal["ok", "note", "warning", "error"]
    """note: worth knowing, nothing to do. warning: works, worse than it could. error: does not
    work."""
    finding: str
    remedy: str = ""
