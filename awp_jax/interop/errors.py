"""What goes wrong with checkpoints of other libraries."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not belong to the model."""


class OtherArchitectureError(CheckpointError):
    """A checkpoint whose tensors have other shapes than the model's.

    Attributes:
        problem: What differs, without a full stop, for a sentence that goes on with advice.
    """

    def __init__(self, problem: str):
        super().__init__(f"{problem}.")
        self.problem = problem
