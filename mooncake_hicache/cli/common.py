"""What the commands share: options taken from the one list of options, output, exit statuses."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console

from mooncake_hicache.config import StoreOptions
from mooncake_hicache.options_base import OptionsBase

__all__ = [
    "EXIT_ERROR",
    "EXIT_NOT_RUNNING",
    "EXIT_UNRESPONSIVE",
    "console",
    "print_json",
    "with_options",
]

EXIT_ERROR = 1
EXIT_NOT_RUNNING = 3
EXIT_UNRESPONSIVE = 4
WIDTH_WITHOUT_TERMINAL = 160

# In a file or a pipe nothing should be folded at the width of a terminal that is not there.
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def print_json(value: object) -> None:
    """Print a value as JSON, without colours, for programs."""
    typer.echo(json.dumps(value, indent=2, default=str))


def with_options(
    names: Iterable[str], owner: type[OptionsBase] = StoreOptions
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each named option of a class of options.

    The command gets those that were given as one dict, its parameter `given`. Names, defaults and
    explanations come from `mooncake_hicache.config`, so that they are written once.
    """
    names = list(names)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "given"
        ]
        flags = [_flag(name, owner) for name in names]

        def wrapper(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            command(
                given={name: value for name, value in given.items() if value is not None},
                **arguments,
            )

        wrapper.__name__ = command.__name__
        wrapper.__doc__ = command.__doc__
        signature = inspect.Signature(flags + own)
        wrapper.__signature__ = signature  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in flags + own}
        return wrapper

    return decorate


def _flag(name: str, owner: type[OptionsBase]) -> inspect.Parameter:
    field = owner.model_fields[name]
    choices = typing.get_args(field.annotation) if _is_literal(field.annotation) else ()
    metavar = "|".join(choices) if choices else _metavar(name)
    explanation = " ".join((field.description or "").split())
    default = field.default if field.default != "" else "empty"
    option = typer.Option(
        "--" + name.replace("_", "-"),
        metavar=metavar,
        help=f"{explanation} Default: {default}.",
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        # Text for all: `config` reads units, and its errors name the option and the remedy.
        annotation=Annotated[typing.Optional[str], option],  # noqa: UP045 - evaluated by typer
    )


def _is_literal(annotation: object) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _metavar(name: str) -> str:
    if name in ("config", "log_file", "socket", "token_file"):
        return "PATH"
    if name.endswith("_dir"):
        return "FOLDER"
    if name.endswith(("_ms", "_s")):
        return "DURATION"
    if name == "ssd":
        return "auto|off|DIRECTORIES"
    return "SIZE" if name.endswith(("_size", "_budget", "_free_min")) else "VALUE"
