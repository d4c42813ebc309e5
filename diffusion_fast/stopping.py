"""Calls that another thread stops: a signal comes to the main thread, and ends the call of that one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_this_thread = threading.local()


class Stopped(Exception):
    """The event was set."""


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Calls of a sampler that this thread makes in the block raise Stopped soon after the event is set."""
    _this_thread.event = event
    try:
        yield
    finally:
        del _this_thread.event


def check() -> None:
    event = getattr(_this_thread, "event", None)
    if event is not None and event.is_set():
        raise Stopped
