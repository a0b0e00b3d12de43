"""Files are whole or not there, and what is damaged is said in one sentence."""

import errno
import os

import numpy as np
import pytest
from damage import damaged

from awp_jax import files


class WrongError(Exception):
    """What a reader asks for."""


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITERS = {
    "text": lambda path: files.write_text(path, "new\n"),
    "json": lambda path: files.write_json(path, {"a": [1, 2]}),
    "arrays": lambda path: files.write_arrays(path, {"a": np.arange(3)}),
}


@pytest.mark.core
@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_whole_or_the_old_one_stays(tmp_path, monkeypatch, kind):
    path = tmp_path / "folder" / "file"
    WRITERS[kind](path)
    whole = path.read_bytes()
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.StorageError, match=r"file cannot be written \(No space left on dev"):
        WRITERS[kind](path)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]
    monkeypatch.undo()
    WRITERS[kind](path)
    assert path.read_bytes() == whole and [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_stops_the_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.core
def test_what_is_written_is_read_back(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [0.5, None, "8/255"]})
    assert files.read_json(tmp_path / "a.json") == {"b": 1, "a": [0.5, None, "8/255"]}
    arrays = {"x/y": np.arange(3), "text": np.array("words")}
    files.write_arrays(tmp_path / "a.npz", arrays)
    found = files.read_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert files.checksum({"a": 1, "b": 2}) == files.checksum({"b": 2, "a": 1})
    # Of a checkpoint of an earlier version: what it wrote must still match.
    assert files.checksum({"step": 4, "best": None}) == 3700701704


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'"text"', b"[" * 100_000])
def test_damaged_json_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(WrongError, match=r"a.json is damaged: .*\.$") as error:
        files.read_json(path, WrongError)
    assert "\n" not in str(error.value)
    with pytest.raises(WrongError, match="b.json cannot be read: No such file"):
        files.read_json(tmp_path / "b.json", WrongError)


def test_damaged_arrays_are_one_sentence(tmp_path):
    path, random, refused = tmp_path / "a.npz", np.random.RandomState(0), 0
    files.write_arrays(path, {"a": np.arange(20.0), "b": np.array("words")})
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(damaged(whole, random))
        try:
            files.read_arrays(path, WrongError)
        except WrongError as error:
            refused += 1
            assert "a.npz is damaged: " in str(error) and "\n" not in str(error)
    assert refused > 100
