"""Weights in several files, and at the Hugging Face hub (its cache, without a network)."""

import json

import jax
import numpy as np
import pytest

from awp_jax import cli, models
from awp_jax.interop import CheckpointError, load_torch, save_torch
from awp_jax.interop.state_dict import leaves, to_state_dict

numpy_files = pytest.importorskip("safetensors.numpy")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model():
    classifier = models.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=6)
    return classifier, *classifier.init(jax.random.key(0))


def write_shards(folder, model):
    folder.mkdir(parents=True, exist_ok=True)
    state = to_state_dict(*model)
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:3]}
    parts["model-00002-of-00002.safetensors"] = names[3:]
    for file, held in parts.items():
        numpy_files.save_file({name: state[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def check(loaded, model):
    found, expected = dict(leaves(loaded[0])), dict(leaves(model[1]))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.core
def test_an_index_and_its_folder_are_read(tmp_path, model):
    index = write_shards(tmp_path / "sharded", model)
    check(load_torch(index, model[0]), model)
    check(load_torch(str(index.parent), model[0]), model)
    save_torch(tmp_path / "one" / "model.safetensors", *model)
    check(load_torch(tmp_path / "one", model[0]), model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is a folder with no model.safetensors or"):
        load_torch(tmp_path / "empty", model[0])


@pytest.mark.core
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("weight_map"), "no index: it has no weight_map"),
        (lambda m: m["weight_map"].update(a="../model.safetensors"), "'../model.safetensors', but"),
        (lambda m: m["weight_map"].update(a="model.bin"), "'model.bin', but a .safetensors file"),
        (
            lambda m: m["weight_map"].update(a="other.safetensors"),
            "other.safetensors, which is not",
        ),
        (
            lambda m: m["weight_map"].update(a="model-00001-of-00002.safetensors"),
            "00001-of-00002.safetensors lacks a, which",
        ),
    ],
)
def test_a_wrong_index_is_one_sentence(tmp_path, model, change, message):
    index = write_shards(tmp_path, model)
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_torch(index, model[0])


def test_one_shard_alone_names_the_index(tmp_path, model):
    shard = write_shards(tmp_path, model).with_name("model-00001-of-00002.safetensors")
    for path in (shard, "hf://lab/many/model-00001-of-00002.safetensors"):
        said = "is one of 2 files .* give their index, model.safetensors.index.json, or the folder"
        with pytest.raises(CheckpointError, match=said):
            load_torch(path, model[0])
    save_torch(tmp_path / "model-00001-of-00001.safetensors", *model)
    check(load_torch(tmp_path / "model-00001-of-00001.safetensors", model[0]), model)


def test_a_truncated_shard_is_one_sentence(tmp_path, model):
    index = write_shards(tmp_path, model)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors is not a readable"):
        load_torch(index, model[0])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache as a folder of this test, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def cached(name):
        folder = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(REVISION)
        (folder / "snapshots" / REVISION).mkdir(parents=True)
        return folder / "snapshots" / REVISION

    return cached


def test_files_in_the_cache_are_read_offline(tmp_path, hub, model):
    save_torch(hub("lab/one") / "model.safetensors", *model)
    write_shards(hub("lab/many"), model)
    save_torch(hub("lab/named") / "weights" / "best.safetensors", *model)
    for address in (
        "hf://lab/one",
        "hf://lab/one@main",
        f"hf://lab/one@{REVISION}/model.safetensors",
        "hf://lab/many",
        "hf://lab/named/weights/best.safetensors",
    ):
        check(load_torch(address, model[0]), model)
    flags = ["--model=mlp", "--width=6", "--data=digits", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["import", "hf://lab/many", *flags]) == 0


@pytest.mark.parametrize("address", ["hf://lab", "hf://", "hf:///name"])
def test_no_address_is_one_sentence(model, address):
    with pytest.raises(CheckpointError, match=f"{address} is no address of the hub: hf://owner"):
        load_torch(address, model[0])


def test_what_is_not_in_the_cache_is_one_sentence(hub, model, capsys):
    hub("lab/empty")
    for address in ("hf://lab/empty", "hf://lab/nothing/model.safetensors"):
        with pytest.raises(CheckpointError, match=f"{address} has no .*model.safetensors") as found:
            load_torch(address, model[0])
        assert "\n" not in str(found.value)


def test_a_hub_that_is_not_reached_is_asked_once(tmp_path, model, monkeypatch, caplog):
    module = pytest.importorskip("huggingface_hub")
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(url)
            raise RuntimeError("no route\nto host")  # of httpx: no OSError

    monkeypatch.setattr(module.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.utils, "get_session", Session)
    with pytest.raises(CheckpointError, match=r"lab/one has no .* cannot be reached: no route\.$"):
        load_torch("hf://lab/one", model[0])
    # The library itself would try ten times for more than a minute, and warn each time.
    assert len(asked) == 1 and not caplog.records


def test_weights_are_written_to_the_hub(monkeypatch, model):
    module = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, repository, exist_ok):
            calls.append((repository, exist_ok))

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, revision, **_):
            calls.append((repo_id, path_in_repo, revision, numpy_files.load(path_or_fileobj)))

    monkeypatch.setattr(module, "HfApi", Api)
    save_torch("hf://lab/mine", *model)
    save_torch("hf://lab/mine@dev/sub/best.safetensors", *model)
    assert calls[0] == ("lab/mine", True)
    assert calls[1][:3] == ("lab/mine", "model.safetensors", None)
    assert calls[3][:3] == ("lab/mine", "sub/best.safetensors", "dev")
    for name, value in to_state_dict(*model).items():
        np.testing.assert_array_equal(calls[1][3][name], value)

    def refuse(self, *_, **__):
        raise RuntimeError("no token\nlook at the docs")

    monkeypatch.setattr(Api, "upload_file", refuse)
    with pytest.raises(CheckpointError, match=r"hf://lab/mine cannot be written: no token\.$"):
        save_torch("hf://lab/mine", *model)
