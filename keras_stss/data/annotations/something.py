"""Something-Something: V1 (CSV lists, folders of frames) and V2 (JSON lists, videos)."""

import re

from keras_stss.data.annotations import files
from keras_stss.data.annotations.data_set import Clip, DataSet
from keras_stss.data.annotations.lists import IdList, warn_of_both
from keras_stss.data.annotations.places import find_clips

_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv")


def annotation_files(data, root):
    """(labels, train, validation) paths."""
    version, suffix = data.format[-2:], ".json" if data.format == "something_v2" else ".csv"
    return [
        files.find_file(data, root, part, [f"something-something-{version}-{part}{suffix}", f"{part}{suffix}"])
        for part in ("labels", "train", "validation")
    ]


def read(data, root):
    """The :class:`DataSet` of the config's data section."""
    version_2 = data.format == "something_v2"
    label_path, *list_paths = annotation_files(data, root)
    labels = _labels_v2(label_path) if version_2 else files.read_labels(label_path)
    index = {text: number for number, text in enumerate(labels)}
    faults, lists = files.Faults(), []
    for path in list_paths:
        entries = IdList(path, faults)
        for line, clip_id, text in (_list_v2 if version_2 else _list_v1)(path, faults):
            if not re.fullmatch(r"\w[\w.-]*", clip_id):
                faults.add(path, line, f"the id {clip_id!r} is not a plain name")
            elif text not in index:
                entries.refuse(
                    line, clip_id, f"unknown label {text!r} (id {clip_id}): not one of the {len(index)} in {label_path}"
                )
            else:
                entries.add(line, clip_id, index[text])
        lists.append(entries)
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    name = f"20bn-something-something-{data.format[-2:]}"
    paths = find_clips(
        data, [root / name, root / "videos", root], [*lists[0], *lists[1]], _SUFFIXES if version_2 else ("",)
    )
    kind = "video" if version_2 else "frames"
    clips = [[Clip(clip_id, paths[clip_id], label, kind) for clip_id, label in entries.items()] for entries in lists]
    return DataSet(*clips, labels)


def _labels_v2(path):
    table, text = files.load_json(path, dict, "an object {text: index}")
    texts, faults = {}, files.Faults()
    for label, number in table.items():
        index = None if isinstance(number, bool) else files.whole_number(str(number))
        if index is None:
            faults.add(
                path, files.line_of(text, label), f"the index of {label!r} is not a whole number. Received: {number!r}"
            )
        elif index in texts:
            faults.add(path, files.line_of(text, label), f"index {index} twice: {texts[index]!r} and {label!r}")
        else:
            texts[index] = _without_brackets(label)
    return files.in_order(path, texts, faults)


def _list_v2(path, faults):
    entries, text = files.load_json(path, list, "a list of clips")
    for line, entry in zip(files.entry_lines(text, len(entries)), entries, strict=True):
        fields = entry if isinstance(entry, dict) else {}
        clip_id, template = fields.get("id"), fields.get("template")
        if isinstance(clip_id, bool) or not isinstance(clip_id, str | int) or not isinstance(template, str):
            faults.add(path, line, f"an entry needs id and template. Received: {str(entry)[:80]}")
        else:
            yield line, str(clip_id).strip(), _without_brackets(template)


def _list_v1(path, faults):
    for number, (line, fields) in enumerate(files.rows(path, files.read_text(path), ";")):
        if number == 0 and [field.lower() for field in fields] == ["id", "label"]:
            continue
        if len(fields) != 2:
            faults.add(path, line, f"wanted id;label text. Received: {';'.join(fields)[:80]!r}")
        else:
            yield line, fields[0], files.tidy(fields[1])


def _without_brackets(text):
    return files.tidy(re.sub(r"[\[\]]", "", text))
