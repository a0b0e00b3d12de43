"""Checkpoints of PyTorch models: equal logits, exact round trips, and clear refusals."""

import builtins
import os
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch_models import (
    MnistNet,
    PostActBlock,
    PreActBlock,
    ResidualNet,
    VGGNet,
    WideNet,
    copy_into,
    scattered,
)

from awp_jax import models
from awp_jax.extras import MissingExtraError
from awp_jax.interop import CheckpointError, load_torch, normalisation, save_torch
from awp_jax.interop.state_dict import leaves, to_state_dict

WRN = {"image_shape": (8, 8, 3), "num_classes": 5}


@pytest.fixture(scope="module")
def wrn():
    classifier = models.create("wrn-10-1", **WRN)
    return classifier, *scattered(classifier)


@pytest.fixture(scope="module")
def state(wrn):
    return {name: torch.tensor(value) for name, value in to_state_dict(*wrn).items()}


def saved(path, content):
    torch.save(content, path)
    return path


def same(left, right):
    left, right = dict(leaves(left)), dict(leaves(right))
    return left.keys() == right.keys() and all(
        left[path].dtype == right[path].dtype and np.array_equal(left[path], right[path])
        for path in left
    )


def randomise(module):
    """PyTorch's own initial values, and running statistics that are not 0 and 1."""
    with torch.no_grad():
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("preact-resnet-18", lambda: ResidualNet(PreActBlock, 3, 10, 64, (2, 2, 2, 2))),
        ("wrn-16-2", lambda: WideNet(16, 2, 3, 10)),
    ],
)
def test_logits_equal_pytorch(tmp_path, name, build):
    torch.manual_seed(0)
    module = randomise(build())
    path = saved(tmp_path / "best.pth", {"state_dict": module.state_dict(), "epoch": 3})
    params, batch_stats = load_torch(path, name)
    classifier = models.create(name, image_shape=(32, 32, 3), num_classes=10)
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(
        lambda *variables: classifier.apply(*variables, images, mode="running")[0],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    with torch.no_grad():
        expected = module(torch.tensor(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(apply(params, batch_stats), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("resnet-18", {"width": 2}, lambda: ResidualNet(PostActBlock, 3, 5, 2, (2, 2, 2, 2))),
        ("resnet-34", {"width": 1}, lambda: ResidualNet(PostActBlock, 3, 5, 1, (3, 4, 6, 3))),
        ("wrn-28-2", {}, lambda: WideNet(28, 2, 3, 5)),
        ("vgg-13", {"width": 1}, lambda: VGGNet((2, 2, 2, 2, 2), 1, 3, 5)),
        ("vgg-19", {"width": 1}, lambda: VGGNet((2, 2, 4, 4, 4), 1, 3, 5)),
        ("mnist-cnn", {"image_shape": (28, 28, 1), "num_classes": 10}, MnistNet),
    ],
)
def test_names_are_those_of_pytorch(name, options, build):
    """A strict ``load_state_dict`` finds every name and shape."""
    shapes = {"image_shape": (32, 32, 3), "num_classes": 5}
    classifier = models.create(name, **{**shapes, **options})
    copy_into(build(), classifier, *scattered(classifier))


@pytest.mark.core
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_round_trip_is_exact(tmp_path, wrn, suffix):
    path = tmp_path / "new" / f"checkpoint{suffix}"
    save_torch(path, *wrn)
    params, batch_stats = load_torch(path, wrn[0])
    assert same(params, wrn[1]) and same(batch_stats, wrn[2])
    assert all(type(node) is dict for node in (params, params["block1"], batch_stats["bn1"]))
    assert isinstance(params["fc"]["kernel"], jax.Array)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_round_trip_of_models_without_published_names(tmp_path):
    classifier = models.create("mlp", image_shape=(4, 4, 1), num_classes=3, width=5)
    params, batch_stats = scattered(classifier)
    save_torch(tmp_path / "mlp.safetensors", classifier, params, batch_stats)
    names = safetensors.numpy.load_file(tmp_path / "mlp.safetensors")
    assert names["hidden.0.weight"].shape == (5, 16)
    loaded = load_torch(tmp_path / "mlp.safetensors", classifier)
    assert same(loaded[0], params) and loaded[1] == {}


def test_float64_is_kept_where_jax_has_it(tmp_path, wrn, x64):
    classifier = wrn[0]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) / 3, wrn[1:])
    save_torch(tmp_path / "wide.pt", classifier, *wide)
    params, batch_stats = load_torch(tmp_path / "wide.pt", classifier)
    assert same(params, wide[0]) and same(batch_stats, wide[1])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_low_precision_is_widened(tmp_path, wrn, state, name, suffix):
    low = {key: value.to(getattr(torch, name)).contiguous() for key, value in state.items()}
    path = tmp_path / f"low{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(low, path)
    params, _ = load_torch(path, wrn[0])
    assert params["fc"]["kernel"].dtype == jnp.float32
    expected = low["fc.weight"].float().numpy().T
    np.testing.assert_array_equal(params["fc"]["kernel"], expected)


WRAPPERS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "two prefixes": lambda state: {f"module.model.{name}": v for name, v in state.items()},
    "basic_net": lambda state: {f"basic_net.{name}": value for name, value in state.items()},
    "normalising Sequential": lambda state: (
        {"0.mean": torch.zeros(1, 3, 1, 1), "0.std": torch.ones(1, 3, 1, 1)}
        | {f"1.{name}": value for name, value in state.items()}
    ),
    "state_dict": lambda state: {"state_dict": state, "epoch": 7, "best": 0.5},
    "net": lambda state: {"net": state, "acc": np.float64(52.79)},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}},
    "another name": lambda state: {
        "epoch": 3,
        "weights": {"inner": state},
        "optimiser": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{}]},
    },
    "dead duplicate": lambda state: (
        state | {f"sub_block1.{name}": value for name, value in state.items()}
    ),
    "dead duplicate, DataParallel": lambda state: {
        f"module.{name}": value
        for name, value in (state | {f"sub_block1.{n}": v for n, v in state.items()}).items()
    },
    "without counters": lambda state: {
        name: value for name, value in state.items() if "num_batches" not in name
    },
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_training_scripts_wrap_around(tmp_path, wrn, state, wrapper):
    path = saved(tmp_path / "wrapped.pt", WRAPPERS[wrapper](dict(state)))
    params, batch_stats = load_torch(path, wrn[0])
    assert same(params, wrn[1]) and same(batch_stats, wrn[2])


def test_another_normalisation_is_noted(tmp_path, state):
    wrapped = {"mean": torch.tensor([0.5, 0.5, 0.5]), **state}
    path = saved(tmp_path / "normalised.pt", wrapped)
    with pytest.warns(UserWarning, match=r"mean \(0.5, 0.5, 0.5\).*mean=\(\)"):
        load_torch(path, "wrn-10-1", **WRN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_torch(path, "wrn-10-1", **WRN, mean=(0.5, 0.5, 0.5))


def test_modules_of_other_names(tmp_path, wrn, state):
    renamed = {f"module.{n.replace('fc.', 'head.')}": value for n, value in state.items()}
    path = saved(tmp_path / "renamed.pt", renamed)
    params, batch_stats = load_torch(path, wrn[0], rename={"head": "fc"})
    assert same(params, wrn[1]) and same(batch_stats, wrn[2])
    with pytest.raises(CheckpointError, match="has nothing called tail"):
        load_torch(path, wrn[0], rename={"tail": "fc"})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("0.mean", "0.std"), ((0.5, 0.25, 0.125), (2.0, 2.0, 4.0))),
        (("mu", "sigma"), ((0.5, 0.25, 0.125), (2.0, 2.0, 4.0))),
        (("normalizer.new_mean", "normalizer.new_std"), ((0.5, 0.25, 0.125), (2.0, 2.0, 4.0))),
        ((), None),
    ],
)
def test_normalisation_of_a_checkpoint(tmp_path, state, names, expected):
    values = (torch.tensor([0.5, 0.25, 0.125]), torch.tensor([2.0, 2.0, 4.0]).reshape(1, 3, 1, 1))
    own = dict(zip(names, values, strict=False))
    path = saved(tmp_path / "normalised.pt", own | state)
    assert normalisation(path) == expected


def test_half_a_normalisation_is_named(tmp_path, state):
    path = saved(tmp_path / "half.pt", {"mean": torch.zeros(3), **state})
    with pytest.raises(CheckpointError, match="1 means and 0 standard deviations"):
        normalisation(path)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.core
def test_a_malicious_pickle_is_refused(tmp_path, wrn):
    mark = tmp_path / "executed"
    path = saved(tmp_path / "malicious.pt", {"state_dict": Payload(str(mark))})
    with pytest.raises(CheckpointError, match="could run any code"):
        load_torch(path, wrn[0])
    with open(path, "wb") as file:
        pickle.dump(Payload(str(mark)), file, protocol=2)
    with pytest.raises(CheckpointError):
        load_torch(path, wrn[0])
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, wrn, suffix, kept):
    path = tmp_path / f"truncated{suffix}"
    save_torch(path, *wrn)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"truncated\S+ is (damaged|not a readable)"):
        load_torch(path, wrn[0])


def changed(name, value):
    return lambda state: state | {name: value}


def without(*gone):
    return lambda state: {name: value for name, value in state.items() if name not in gone}


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc.bias"), r"lacks fc.bias of wrn-10-1\.$"),
        (
            lambda state: {name.replace("fc.", "head."): v for name, v in state.items()},
            "lacks fc.bias, fc.weight of wrn-10-1, and has head.bias, head.weight. If they are the "
            "same, rename: --rename=head:fc",
        ),
        (without("block1.layer.0.bn1.bias", "bn1.weight"), "lacks .*bn1.weight"),
        (changed("fc.extra", torch.ones(3)), "has fc.extra, which wrn-10-1 has not"),
        (
            changed("fc.weight", torch.ones(7, 64)),
            r"another architecture than wrn-10-1: fc.weight has shape \(7, 64\), not \(5, 64\)",
        ),
        (changed("fc.bias", torch.ones(5, dtype=torch.int64)), "fc.bias in .* is int64"),
        (changed("fc.bias", torch.full((5,), torch.nan)), "fc.bias in .* not finite"),
        (changed("bn1.running_var", torch.full((64,), -1.0)), "negative variances"),
        (changed("epoch", 3), "entry 'epoch' is a int, not a tensor"),
        (lambda state: {"weights": 3}, "not a state dict: it holds 'weights'"),
        (lambda state: {"now": state, "ema": state}, "several state dicts, 'now', 'ema'"),
        (lambda state: {}, "it holds nothing"),
        (lambda state: list(state.values()), "it holds a list"),
        (lambda state: {"other.weight": torch.ones(2)}, "no tensor of wrn-10-1"),
    ],
)
def test_wrong_content_is_named(tmp_path, wrn, state, change, message):
    path = saved(tmp_path / "wrong.pt", change(dict(state)))
    with pytest.raises(CheckpointError, match=message) as error:
        load_torch(path, wrn[0])
    assert "\n" not in str(error.value)


def test_another_architecture_is_named(tmp_path, state):
    path = saved(tmp_path / "wrn.pt", state)
    with pytest.raises(CheckpointError, match="another architecture than preact-resnet-18: conv1"):
        load_torch(path, "preact-resnet-18")


def test_wrong_paths_and_arguments(tmp_path, wrn):
    classifier, params, batch_stats = wrn
    with pytest.raises(CheckpointError, match="There is no file"):
        load_torch(tmp_path / "missing.pt", classifier)
    with pytest.raises(CheckpointError, match="'.npz'"):
        save_torch(tmp_path / "model.npz", *wrn)
    with pytest.raises(CheckpointError, match="fc/bias do not fit wrn-10-1"):
        odd = {**params, "fc": {**params["fc"], "bias": jnp.zeros(9)}}
        save_torch(tmp_path / "model.pt", classifier, odd, batch_stats)
    with pytest.raises(ValueError, match="width can only be given with the name"):
        load_torch(tmp_path / "missing.pt", classifier, width=2)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, wrn, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_torch(path, *wrn)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_torch(path, wrn[0], *scattered(wrn[0], seed=9))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_missing_packages_are_named(tmp_path, wrn, state, monkeypatch):
    path = saved(tmp_path / "model.pt", state)
    installed = builtins.__import__

    def absent(name, *rest):
        if name.split(".")[0] in ("torch", "safetensors"):
            raise ModuleNotFoundError(name, name=name)
        return installed(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(CheckpointError, match="pip install torch"):
        load_torch(path, wrn[0])
    with pytest.raises(CheckpointError, match="pip install torch"):
        save_torch(tmp_path / "new.pt", *wrn)
    with pytest.raises(MissingExtraError, match="needs safetensors: pip install"):
        save_torch(tmp_path / "new.safetensors", *wrn)
