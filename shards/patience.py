"""How long to go on trying: so many failures in a row, so many seconds in all."""

import random
import time
from dataclasses import dataclass, field

from shards.config import StoreConfig


@dataclass
class Patience:
    """What is left of the tries for one request, or for one object that comes in several.

    A plain count of tries would give up a large object that loses its connection now and then and still gets
    on, so only failures that brought nothing are counted; the deadline ends what gets on too slowly.
    """

    attempts: int
    deadline_s: float
    failures: int = 0
    """Failures since something last arrived."""
    _began: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def of(cls, config: StoreConfig) -> "Patience":
        return cls(config.attempts, config.deadline_s)

    def overdue(self) -> bool:
        return self._elapsed() >= self.deadline_s

    def progressed(self) -> None:
        """Something arrived: the failures before it no longer count."""
        self.failures = 0

    def wait(self, at_least: float = 0) -> bool:
        """Count a failure and pause before the next try; False, at once, when there is none to come.

        The pause is ``at_least`` seconds, as a server may ask for, and up to 0.5, 1, 2… 20 s more: clients that
        failed together must not come back together.
        """
        self.failures += 1
        pause = at_least + random.uniform(0.5, 1) * min(2**self.failures / 4, 20)
        if self.failures >= self.attempts or self._elapsed() + pause >= self.deadline_s:
            return False
        time.sleep(pause)
        return True

    def __str__(self) -> str:
        """Why ``wait`` said no."""
        if self.failures >= self.attempts:
            return f"store.attempts = {self.attempts} tries in a row have failed"
        return f"store.deadline_s = {self.deadline_s:g} leaves no time for another try"

    def _elapsed(self) -> float:
        return time.monotonic() - self._began
