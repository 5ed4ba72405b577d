"""Mooncake's own names and numbers over ours: what code written for the original calls.

The distribution in `dropin/` gives these modules the import name `mooncake`. Nothing else of the
package imports from here.
"""

from __future__ import annotations

import logging


class _Unheard(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints what nobody has set up logging for: the original prints its failures too, and a
    program that was written for it sees nothing else but a number."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


logging.getLogger(__name__).addHandler(_Unheard())
