"""A data set that is packed into shards: what its files are, and its lists of clips.

A packed folder holds ``manifest.json`` and, of each shard::

    train-00000-of-00016.tfrecord   the clips
    train-00000-of-00016.json       labels, sources and segments of its clips, and what could not be read
    train-00000-of-00016.index        where the pieces (frames, or blocks of a video file) of its records lie

A *record* is all pieces of one clip, or of one video that several clips are parts of. The manifest is written last.
"""

import hashlib
import json
import re

import numpy as np

from keras_stss.data.annotations import storage
from keras_stss.data.annotations.data_set import Clip, DataError, DataSet
from keras_stss.data.annotations.files import natural_key
from keras_stss.data.annotations.layouts import not_there

VERSION = 1
MANIFEST = "manifest.json"
FORMS = {"jpeg": "packed_frames", "video": "packed_video"}  # form of a packed folder -> kind of its clips
SPLITS = ("train", "validation")

#: A piece: where it begins in the shard, its length in bytes, its CRC-32, and the number of its record in the shard.
PIECE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("record", "<u4")])

_SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}")


def annotation_files(data, _=None):
    """The manifest's path."""
    path = storage.join(data.root, MANIFEST)
    try:
        storage.read_ranges(path, [(0, 1)])
    except OSError as error:
        raise not_there(
            data, f"{MANIFEST} ({error.strerror}; packing that was interrupted has none yet)", [path]
        ) from None
    return [path]


def read(data, _=None, holdout=None):
    """The :class:`DataSet` of the config's data section: the same clips in the same order as when it was packed.

    With ``holdout``, a group, its clips are tested on and all others trained on, whatever the lists were.
    """
    annotation_files(data)
    root = storage.absolute(data.root)
    manifest = read_manifest(root)
    lists = {split: {} for split in SPLITS}
    for shard in manifest["shards"]:
        for entry in read_shard(root, shard)["clips"]:
            lists[shard["split"]][entry["number"]] = _clip(root, shard, entry, manifest)
    for split, clips in lists.items():
        if sorted(clips) != list(range(manifest["clips"][split])) or not clips:
            raise DataError(
                f"{storage.join(root, MANIFEST)} promises {manifest['clips'][split]} clips for {split}, from 0 on; "
                f"its shards hold {len(clips)}"
            )
    train, validation = ([lists[split][number] for number in sorted(lists[split])] for split in SPLITS)
    if holdout is not None:
        clips = train + validation
        if holdout not in (known := _groups(clips, root)):
            hint = " (one at a time here)" if holdout == "each" else ""
            raise DataError(f"{root}: no group {holdout!r}{hint}. There are: {', '.join(known)}")
        train, validation = ([clip for clip in clips if (clip.group == holdout) is held] for held in (False, True))
        if not train:
            raise DataError(f"{root}: all clips are of group {holdout!r}, so none is left to train on")
    return DataSet(train, validation, manifest["labels"])


def groups(data):
    """The groups of all clips in natural order."""
    data_set = read(data)
    return _groups(data_set.train + data_set.validation, storage.absolute(data.root))


def _groups(clips, root):
    if any(clip.group is None for clip in clips):
        raise DataError(f"{root} was packed from a data set without groups, so none can be held out (data.holdout)")
    return sorted({clip.group for clip in clips}, key=natural_key)


def read_manifest(root):
    """The checked manifest of a packed folder.

    Raises:
        DataError: where it is damaged, or of another version.
        OSError: where it cannot be read.
    """
    path = storage.join(root, MANIFEST)
    manifest = _json(path, storage.read_bytes(path))
    version = manifest.get("version")
    if version != VERSION:
        raise DataError(f"{path}: format version {version!r}; this code reads {VERSION}: pack the data set again")
    shards = manifest.get("shards")
    is_whole = (
        manifest.get("form") in FORMS
        and isinstance(manifest.get("labels"), list)
        and isinstance(manifest.get("clips"), dict)
        and all(isinstance(manifest["clips"].get(split), int) for split in SPLITS)
        and isinstance(shards, list)
        and all(isinstance(shard, dict) and _SHARD_NAME.fullmatch(str(shard.get("name"))) for shard in shards)
        and all(shard.get("split") in SPLITS and isinstance(shard.get("sha256"), dict) for shard in shards)
    )
    if not is_whole:
        raise DataError(f"{path} is damaged: it lacks what every manifest has")
    return manifest


def read_shard(root, shard):
    """What the JSON file of a shard says, checked against the manifest's entry ``shard``."""
    path = storage.join(root, f"{shard['name']}.json")
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a shard that the manifest names") from None
    if digest(content) != shard["sha256"].get(".json"):
        raise DataError(f"{path} is damaged: its checksum is not the manifest's")
    return _json(path, content)


def digest(content):
    """The checksum that the manifest holds."""
    return hashlib.sha256(content).hexdigest()


def _json(path, content):
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path} is damaged: no JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged: no JSON object")
    return value


def _clip(root, shard, entry, manifest):
    """The clip of an entry; its path is the shard's, with the number of the record and the suffix of a video behind."""
    path = storage.join(root, f"{shard['name']}.tfrecord#{entry['record']}{entry.get('suffix', '')}")
    frames = entry.get("frames")
    if not 0 <= entry["label"] < len(manifest["labels"]):
        raise DataError(f"{path}: label {entry['label']} of {len(manifest['labels'])}")
    return Clip(
        entry["id"],
        path,
        entry["label"],
        FORMS[manifest["form"]],
        entry.get("group"),
        entry.get("start"),
        entry.get("end"),
        frames and tuple(frames),
    )
