"""Random damage: a checkpoint either gives a whole model or is refused in one sentence."""

import argparse
import contextlib
import re
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


def test_what_is_no_pytorch_file_says_so(tmp_path):
    path = tmp_path / "bad.pt"
    path.write_text("some text\n")
    with pytest.raises(CheckpointError, match=r"bad.pt is no PyTorch file: it begins with b'so'"):
        load_torch(path, CLASSIFIER)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_python_objects_names_the_line_that_strips_them(tmp_path, zipped):
    path = tmp_path / "last.pth.tar"
    params, batch_stats = jax.jit(CLASSIFIER.init)(jax.random.key(0))
    state = to_state_dict(CLASSIFIER, params, batch_stats)
    content = {"state_dict": {k: torch.tensor(v) for k, v in state.items()}}
    content["args"] = argparse.Namespace(model="mlp")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="Python objects beside tensors") as found:
        load_torch(path, CLASSIFIER)
    line = re.search(r"torch\.save\(.*'weights\.pt'\)", str(found.value))[0]
    with contextlib.chdir(tmp_path):
        eval(line, {"torch": torch})
    load_torch(tmp_path / "weights.pt", CLASSIFIER)


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
