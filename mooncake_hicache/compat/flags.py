"""Command lines in the style of the original's programs: `-name=value`, `--name value`, `--noname`.

Also `--flagfile=FILE` (a flag a line, `#` for comments), `--fromenv=a,b` (FLAGS_a and FLAGS_b of
the environment), `--tryfromenv` and `--undefok`. A flag that is not known is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mooncake_hicache.errors import InvalidArgumentError

__all__ = ["Flag", "Flags"]

_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_NESTED_MAX = 8


@dataclass(frozen=True)
class Flag:
    """One flag; its kind is that of its default."""

    default: str | int | bool
    help: str
    choices: tuple[str, ...] = ()


@dataclass
class Flags:
    """The flags of a program, and what a command line made of them."""

    known: Mapping[str, Flag]
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    values: dict[str, str | int | bool] = field(init=False)
    wants_help: bool = field(default=False, init=False)
    _tolerated: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.values = {name: flag.default for name, flag in self.known.items()}

    def text(self, name: str) -> str:
        """Return the value of a flag that is text."""
        return str(self.values[name])

    def number(self, name: str) -> int:
        """Return the value of a flag that is a number."""
        return int(self.values[name])

    def parse(self, arguments: Sequence[str]) -> None:
        """Take the flags of a command line, left to right; the last one of a name counts.

        Raises:
            InvalidArgumentError: A flag is unknown, or its value is none; the message names it.
        """
        for argument in arguments:  # Wherever it stands, it counts for all.
            name, _, value = argument.lstrip("-").partition("=")
            if name == "undefok":
                self._tolerated |= set(value.split(","))
        self._parse(list(arguments), 0)

    def _parse(self, arguments: list[str], depth: int) -> None:
        waiting = list(reversed(arguments))
        while waiting:
            argument = waiting.pop()
            if not argument.startswith("-") or argument in ("-", "--"):
                raise InvalidArgumentError(f"{argument!r} is no flag: --name=value is one")
            name, equals, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_")
            if name in ("help", "h", "helpfull", "helpshort"):
                self.wants_help = True
            elif name in ("flagfile", "fromenv", "tryfromenv", "undefok"):
                self._special(name, value if equals else self._next(name, waiting), depth)
            elif name in self.known and isinstance(self.known[name].default, bool):
                self._set(name, value if equals else "true")
            elif name in self.known:
                self._set(name, value if equals else self._next(name, waiting))
            elif not equals and isinstance(self._default(name.removeprefix("no")), bool):
                self._set(name.removeprefix("no"), "false")
            elif name not in self._tolerated:
                raise InvalidArgumentError(
                    f"the flag --{name} is unknown; known are {', '.join(sorted(self.known))}"
                )

    def _default(self, name: str) -> str | int | bool | None:
        flag = self.known.get(name)
        return flag.default if flag is not None else None

    @staticmethod
    def _next(name: str, waiting: list[str]) -> str:
        if not waiting:
            raise InvalidArgumentError(f"the flag --{name} needs a value: --{name}=VALUE")
        return waiting.pop()

    def _special(self, name: str, value: str, depth: int) -> None:
        if name == "flagfile":
            if depth == _NESTED_MAX:
                raise InvalidArgumentError(f"--flagfile={value}: flag files name each other")
            try:
                lines = Path(value).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidArgumentError(f"cannot read --flagfile={value}: {error}") from None
            stripped = [line.strip() for line in lines]
            self._parse([line for line in stripped if line and line[0] != "#"], depth + 1)
        elif name != "undefok":
            for wanted in filter(None, value.split(",")):
                found = self.environment.get(f"FLAGS_{wanted}")
                if found is not None:
                    self._parse([f"--{wanted}={found}"], depth)
                elif name == "fromenv":
                    raise InvalidArgumentError(
                        f"--fromenv={wanted}: FLAGS_{wanted} is not in the environment"
                    )

    def _set(self, name: str, text: str) -> None:
        flag = self.known[name]
        if isinstance(flag.default, bool):
            if text.lower() not in _TRUE + _FALSE:
                raise InvalidArgumentError(f"--{name}={text}: give true or false")
            self.values[name] = text.lower() in _TRUE
        elif isinstance(flag.default, int):
            if not text.isascii() or not text.isdigit():
                raise InvalidArgumentError(f"--{name}={text}: give a whole number, 0 or more")
            self.values[name] = int(text)
        else:
            if flag.choices and text not in flag.choices:
                raise InvalidArgumentError(
                    f"--{name}={text}: give one of {', '.join(flag.choices)}"
                )
            self.values[name] = text

    def usage(self, program: str) -> str:
        """Return what `--help` prints."""
        lines = [f"{program}: flags, each with one dash or two", ""]
        for name, flag in sorted(self.known.items()):
            choices = f" ({' | '.join(flag.choices)})" if flag.choices else ""
            lines.append(f"  --{name}={flag.default}{choices}\n      {flag.help}")
        return "\n".join(lines) + "\n"
