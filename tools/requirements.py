"""Print the requirements of pyproject.toml: the package's own and those of the group `dev`.

Standard library only, as it runs before anything is installed. `pip install -e .[dev]` would do the
same, but builds the C++ core too, which is a step of its own with its own stamp.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path


def string_list(text: str, name: str) -> list[str]:
    """Return the list of strings called `name`; tomllib comes only with Python 3.11."""
    found = re.search(rf"^{name} = (\[\n.*?^\])", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"pyproject.toml: no list {name}")
    return list(ast.literal_eval(found.group(1)))


if __name__ == "__main__":
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(string_list(project, "dependencies") + string_list(project, "dev")))
