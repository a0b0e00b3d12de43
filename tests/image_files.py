"""A tiny ImageNet in its folders, and the same images in shards, made in the tests."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n01443537", "n02085620")
COUNTS = {"train": 7, "val": 4}


def write_folders(root, classes=CLASSES, counts=None):
    """``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG`` of several sizes, some grey, some CMYK."""
    random = np.random.default_rng(0)
    for part, count in (counts or COUNTS).items():
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(24, 70, 2)
                pixels = random.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
                image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
                mode = {1: "L", 2: "CMYK"}.get(number, "RGB")
                image.convert(mode).save(folder / f"{name}_{number}.JPEG", quality=90)
    return root


def files_of(root, part):
    """Paths and labels as torchvision's ImageFolder orders them."""
    names = sorted(folder.name for folder in (root / "train").iterdir())
    for label, name in enumerate(names):
        for path in sorted((root / part / name).glob("*")):
            yield path, label


def write_shards(folders, root, per_shard=8):
    """The same images as tar shards: labels as ``.cls`` in training, ``.json`` in validation."""
    root.mkdir()
    for part in ("train", "val"):
        examples = list(files_of(folders, part))
        for shard, start in enumerate(range(0, len(examples), per_shard)):
            with tarfile.open(root / f"{part}-{shard:06d}.tar", "w") as archive:
                for path, label in examples[start : start + per_shard]:
                    key = path.stem
                    text = str(label) if part == "train" else json.dumps({"label": label})
                    add(archive, f"{key}.{'cls' if part == 'train' else 'json'}", text.encode())
                    add(archive, f"{key}.jpg", path.read_bytes())
    return root


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_records(folders, root, per_shard=8):
    """The same images as tensorflow-datasets keeps them: tf.train.Example in array_record files."""
    from array_record.python.array_record_module import ArrayRecordWriter

    root.mkdir()
    for part, name in (("train", "train"), ("val", "validation")):
        examples = list(files_of(folders, part))
        shards = range(0, len(examples), per_shard)
        for shard, start in enumerate(shards):
            path = root / f"fake-{name}.array_record-{shard:05d}-of-{len(shards):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for file, label in examples[start : start + per_shard]:
                writer.write(example(file.name.encode(), file.read_bytes(), label))
            writer.close()
    return root


def example(name, image, label):
    """A tf.train.Example of a name, an image and a label, by the library of protocol buffers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto3")

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (called, kind, label, of) in enumerate(fields, 1):
            made.field.add(
                name=called, number=number, type=kind, label=label, type_name=of and f".e.{of}"
            )
        return made

    message("BytesList", ("value", 12, 3, None))
    message("FloatList", ("value", 2, 3, None))
    message("Int64List", ("value", 3, 3, None))
    lists = ("BytesList", "FloatList", "Int64List")
    message("Feature", *((kind.lower(), 11, 1, kind) for kind in lists))
    features = message("Features", ("feature", 11, 3, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".e.Feature")
    entry.options.map_entry = True
    message("Example", ("features", 11, 1, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))()
    made.features.feature["file_name"].byteslist.value.append(name)
    made.features.feature["image"].byteslist.value.append(image)
    made.features.feature["label"].int64list.value.append(label)
    return made.SerializeToString()
