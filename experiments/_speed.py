"""How fast a run was trained, from its ``metrics.jsonl``."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from experiments._measures import Measure
from experiments._scales import Scale
from experiments._work import training_flops


@dataclasses.dataclass(frozen=True)
class Speed(Measure):
    """Training alone, without evaluations: the median over the lines of the log.

    Attributes:
        kind: ``"seconds"`` per epoch, or ``"tflops"``: FLOPs of the model's passes (see
            ``experiments._work``) per second, in 1e12.
    """

    kind: str = dataclasses.field(default="seconds", compare=False)

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {"images per second": "median"}

    def compute(self, opened: Any, scale: Scale) -> dict[str, float]:
        records = [r for r in opened.metrics() if r["kind"] == "train"]
        # The first line has the compilation in it.
        rates = [r["images_per_second"] for r in records[1:] or records]
        rate = statistics.median(rates)
        images = len(opened.experiment.splits.train)
        return {"seconds": images / rate, "tflops": rate * training_flops(opened.config) / 1e12}

    def read(self, get: Callable[[Measure], Any]) -> Any:
        return get(self)[self.kind]
