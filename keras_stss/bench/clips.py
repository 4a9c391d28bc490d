"""Clips for the benchmark of data, in every storage form: made from the embedded data set's scenes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import tensorflow as tf

from keras_stss.data.synthetic import FPS, TEMPLATES, encode_webm, render_clip
from keras_stss.data.synthetic.write import encode

#: Storage form → (name of a clip's file or folder, what :class:`keras_stss.data.annotations.Clip` calls it).
FORMS = {"jpeg": ("{}", "frames"), "webm": ("{}.webm", "video"), "mp4": ("{}.mp4", "video")}
QUALITY = 90  # of the JPEG frames
#: Side of the corner that tells which frame it is: a share of the height.
TAG = 1 / 8


def paths(root, form, count):
    """Where the clips of a storage form lie."""
    return [str(Path(root, form, FORMS[form][0].format(number))) for number in range(count)]


def make(root, count, frames, height, width, workers):
    """Writes ``count`` clips in all three storage forms."""
    for form in FORMS:
        Path(root, form).mkdir(parents=True, exist_ok=True)

    def write(number):
        clip = render_clip(number % len(TEMPLATES), np.random.default_rng(number), frames, height, width)
        clip = clip.copy()  # a clip played backwards is a view
        side = int(TAG * height)
        clip[:, :side, :side] = tags(np.arange(frames))[:, None, None, None]
        folder, webm, mp4 = (Path(root, form, FORMS[form][0].format(number)) for form in FORMS)
        folder.mkdir()
        for index, frame in enumerate(clip, 1):
            jpeg = tf.io.encode_jpeg(frame, quality=QUALITY).numpy()
            (folder / f"{index:05d}.jpg").write_bytes(jpeg)
        encode_webm(webm, clip)
        _encode_mp4(mp4, clip)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, range(count)))


def tags(indices):
    """Grey level of the corner of each frame; those of frames that follow one another lie far apart."""
    return (28 + 37 * np.asarray(indices) % 200).astype("uint8")


def _encode_mp4(path, clip):
    """H.264 as most tools write it: one key frame, B-frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "medium"})
        encode(container, stream, clip)
