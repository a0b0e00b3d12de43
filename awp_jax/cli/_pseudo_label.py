"""``awp-jax pseudo-label``."""

import pathlib
from collections.abc import Sequence

import numpy as np

from awp_jax import data, runs
from awp_jax.cli._command import Command
from awp_jax.cli._errors import UsageError
from awp_jax.cli._flags import required
from awp_jax.evaluation import predict
from awp_jax.files import write_arrays


def main(argv: Sequence[str]) -> int:
    """Labels; returns the exit status."""
    command = Command(
        "pseudo-label",
        "Labels the images of a file by a run's model, trained naturally for RST, and writes an\n"
        ".npz file with labels and confidences, for data.extra_labels.",
    )
    command.string("workdir", None, "the run directory of the labelling model")
    command.string("images", None, "the file: .npz with image, images or x, .npy, or RST's .pickle")
    command.string("output", None, "the .npz file to write")
    command.string("checkpoint", "last", "which: best, last, average")
    values = command.parse(argv)
    output = pathlib.Path(required(values, "output"))
    if output.suffix != ".npz":
        raise UsageError(
            f"--output is {str(output)!r}, but a file name ending in .npz was expected."
        )
    run = runs.open(required(values, "workdir"))
    images = data.open_images(required(values, "images"))
    shape = run.experiment.classifier.image_shape
    if images.shape[1:] != shape:
        raise UsageError(
            f"{values['images'].value} has images of shape {images.shape[1:]}, but the model of "
            f"{run.workdir} takes {shape}."
        )
    state, info = run.restore(required(values, "checkpoint"))
    batch_size = run.experiment.config.evaluation.batch_size
    labels, confidence = predict(run.logits_fn(state), images, batch_size=batch_size)
    write_arrays(output, {"labels": labels, "confidence": confidence})
    counts = np.bincount(labels, minlength=run.experiment.classifier.num_classes)
    print(
        f"labelled {len(labels)} images with the {values['checkpoint'].value} checkpoint of "
        f"{run.workdir} (step {info['step']}), mean confidence {confidence.mean():.3f}, by class "
        f"{', '.join(map(str, counts))}: {output}"
    )
    return 0
