# SPDX-License-Identifier: Apache-2.0
"""The library's warnings, which a thread can collect for itself.

Python's own way to record warnings changes the filters of the whole process, so two threads that
record at once get each other's and may leave the filters changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COLLECTED: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def warn(text: str, stacklevel: int = 1) -> None:
    """Warn as `warnings.warn` does; within `collected`, the text is kept instead."""
    texts = _COLLECTED.get()
    if texts is None:
        warnings.warn(text, stacklevel=stacklevel + 1)
    else:
        texts.append(text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the warnings of this thread in a list, each once; other threads are not affected.

    Example:
        with collected() as texts:
            pipeline(scene)
    """
    texts: list[str] = []
    token = _COLLECTED.set(texts)
    try:
        yield texts
    finally:
        _COLLECTED.reset(token)
        texts[:] = dict.fromkeys(texts)
