"""Tells how far an evaluation is, by the work of its attacks."""

from collections.abc import Mapping

from awp_jax.progress import Progress


class Tell:
    """Tells the share of each attack as work, which attacks have very different amounts of.

    Args:
        progress: Counts passes through the model.
        where: What is attacked, for a person.
        costs: Of each attack, passes for one example; see ``awp_jax.attacks._work.work``.
        examples: Number of images.
    """

    def __init__(self, progress: Progress, where: str, costs: Mapping[str, float], examples: int):
        self._progress, self._where = progress, where
        self._costs, self._examples = costs, examples
        self._name, self._share = "", 0.0
        self._computed: float | None = None

    def __call__(
        self, name: str, share: float, computed: float | None = None, note: str = ""
    ) -> None:
        """So much of an attack is done.

        Args:
            name: Of the attack.
            share: In [0, 1].
            computed: The part of ``share`` that took time; ``None`` for all of it, or, once it was
                given for this attack, for no more than was given.
            note: What there is to say beside.
        """
        if name != self._name:
            self._name, self._share, self._computed = name, 0.0, None
        gained = max(share - self._share, 0.0)
        took = gained
        if computed is not None:
            took = min(max(computed - (self._computed or 0.0), 0.0), gained)
        elif self._computed is not None:
            computed, took = self._computed, 0.0
        self._share, self._computed = max(share, self._share), computed
        passes = self._costs[name] * self._examples
        self._progress.advance(
            took * passes,
            f"{self._where} {name}{note}".strip(),
            spared=(gained - took) * passes,
            say=share == 1,
        )

    def kept(self, name: str) -> None:
        """An attack was found on disk."""
        self._name, self._share, self._computed = name, 0.0, 0.0
