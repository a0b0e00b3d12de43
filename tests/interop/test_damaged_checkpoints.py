"""Random damage: a checkpoint either gives a whole model or is refused in one sentence."""

import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
from damage import CHECKPOINT_ROUNDS, damaged

from awp_jax import models
from awp_jax.interop import CheckpointError, load_torch
from awp_jax.interop.state_dict import to_state_dict

CLASSIFIER = models.create("mlp", image_shape=(4, 4, 1), num_classes=3, width=5)


def write_safetensors(path, state):
    safetensors.numpy.save_file(state, path)


def write_zip(path, state):
    torch.save({"state_dict": {k: torch.tensor(v) for k, v in state.items()}}, path)


def write_old(path, state):
    content = {f"module.{k}": torch.tensor(v) for k, v in state.items()}
    torch.save(content, path, _use_new_zipfile_serialization=False)


FORMATS = {
    "safetensors": ("a.safetensors", write_safetensors),
    "zip": ("a.pt", write_zip),
    "pickle": ("a.pth", write_old),
}


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_refused_or_harmless(tmp_path, form):
    name, write = FORMATS[form]
    path = tmp_path / name
    params, batch_stats = jax.jit(CLASSIFIER.init)(jax.random.key(0))
    write(path, to_state_dict(CLASSIFIER, params, batch_stats))
    good = path.read_bytes()
    random = np.random.RandomState(len(form))
    refused = 0
    for _ in range(CHECKPOINT_ROUNDS):
        path.write_bytes(damaged(good, random))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found, _ = load_torch(path, CLASSIFIER)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error), str(error)
        else:
            same = jax.tree.map(lambda a, b: a.shape == b.shape, found, params)
            assert jax.tree.all(same)
    assert refused > CHECKPOINT_ROUNDS // 5


def test_a_pickle_that_holds_itself_is_refused(tmp_path):
    content = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        load_torch(tmp_path / "a.pt", CLASSIFIER)
