"""Metrics of steps that no line of metrics.jsonl tells of yet."""

from collections.abc import Iterator
from typing import Any

import jax

# A step and its metrics on the host.
Told = list[tuple[int, dict[str, Any]]]


class Pending:
    """Metrics stay on the device until they are told: fetching one would wait for its step."""

    def __init__(self) -> None:
        self._sent: list[tuple[range, Any]] = []
        self._fetched: Told = []

    def add(self, steps: range, metrics: Any) -> None:
        """What a call of the compiled step, or steps, has returned."""
        self._sent.append((steps, metrics))

    def __len__(self) -> int:
        """Steps that are not told yet."""
        return len(self._fetched) + len(self.sent)

    @property
    def sent(self) -> list[int]:
        """Steps whose metrics are still on the device."""
        return [step for steps, _ in self._sent for step in steps]

    def fetch(self) -> list[int]:
        """Waits for all metrics, and says of which steps they are."""
        told, sent, self._sent = self.sent, self._sent, []
        values = jax.device_get([metrics for _, metrics in sent])
        for (steps, _), found in zip(sent, values, strict=True):
            for place, step in enumerate(steps):
                at = place if len(steps) > 1 else ...  # several have an axis of the steps
                self._fetched.append((step, {name: value[at] for name, value in found.items()}))
        return told

    def tell(self, every: int) -> Iterator[Told]:
        """What was fetched, in whole lots of ``every`` steps (the rest waits); 0: all in one."""
        while self._fetched and len(self._fetched) >= every:
            count = every or len(self._fetched)
            told, self._fetched = self._fetched[:count], self._fetched[count:]
            yield told
