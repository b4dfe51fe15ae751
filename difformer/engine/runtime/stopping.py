"""Orderly stopping: signals take effect between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Records SIGINT and SIGTERM inside its `with` block, instead of ending at once. A second SIGINT ends at once."""

    def __init__(self) -> None:
        self._seen: signal.Signals | None = None
        self._message: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def signal_seen(self) -> signal.Signals | None:
        """The signal received, or None."""
        return self._seen

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Makes a signal raise `Stopped` with a message at once, for work that has nothing to save."""
        self._message = message
        try:
            yield
        finally:
            self._message = None

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._message is not None:
            raise Stopped(self._message, number)
        if self._seen is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._seen = signal.Signals(number)


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal after it had saved its state.

    Attributes:
        status: the exit status by convention, 128 + the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number
