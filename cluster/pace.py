"""How fast a piece of work goes, and how long the rest will take."""

from collections import deque

OVER_S = 30.0
"""A rate is that of about so many seconds just past: what a restart finds finished does not flatter it for long."""


class Pace:
    """Rates of what is counted in ``unit``, and of bytes; it is told how far the work is from time to time."""

    def __init__(self, unit: str, now: float) -> None:
        self.unit = unit
        self._marks: deque[tuple[float, int, int]] = deque([(now, 0, 0)])

    def add(self, now: float, done: int, num_bytes: int = 0) -> None:
        """At ``now`` (seconds), so many units and bytes are done in all."""
        self._marks.append((now, done, num_bytes))
        while now - self._marks[1][0] >= OVER_S:
            self._marks.popleft()

    def rates(self) -> list[str]:
        """``["412 slices/s", "31 MB/s"]``, of what has a rate; a MB is 10^6 bytes."""
        per_second, bytes_per_second = self._per_second()
        units = [f"{_figure(per_second)} {self.unit}/s"] if per_second else []
        return units + ([f"{_figure(bytes_per_second / 1e6)} MB/s"] if bytes_per_second else [])

    def left(self, total: int) -> str:
        """``0:05 left``; nothing when all is done, or when nothing can be said."""
        per_second, _ = self._per_second()
        rest = total - self._marks[-1][1]
        if not per_second or rest <= 0:
            return ""
        minutes, seconds = divmod(round(rest / per_second), 60)
        clock = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
        return f"{clock}:{seconds:02d} left"

    def _per_second(self) -> tuple[float, float]:
        (start, units_before, bytes_before), (end, units, num_bytes) = self._marks[0], self._marks[-1]
        if end <= start:
            return 0.0, 0.0
        return (units - units_before) / (end - start), (num_bytes - bytes_before) / (end - start)


def _figure(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}"
