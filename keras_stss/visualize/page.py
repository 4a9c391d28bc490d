"""One clip's files, and the page that holds those of all."""

import itertools
import re
from pathlib import PurePath

from keras_stss import pages
from keras_stss.data.write_video import encode_video
from keras_stss.training.saving.files import replacing, write_atomically
from keras_stss.visualize import pictures
from keras_stss.visualize.moving import BLOCKS, overlay_frames

#: A clip's video takes so many seconds, whatever its number of frames.
SECONDS = 2.0
_NAMED = 3

_HOW_TO_READ = (
    (
        "Displacement",
        "For each cell of a block's map: how far, and in which direction, the block finds its content moved in the "
        "frame t+1, t-1 and so on. The hue is the direction, as the wheel shows it (Baker et al., Middlebury); "
        "white is rest, the full colour is the length beside the wheel, darker is more; grey: there is no such frame.",
    ),
    (
        "Confidence",
        "The largest similarity inside the window, of which the displacement is made. Along edges, in even regions and "
        "at the border of the frame a displacement says little, however high its confidence.",
    ),
    (
        "Self-similarity",
        "How like one cell (red) is to all cells of the window (white) in each frame, from dark to bright. The cell is "
        "the one with the strongest motion, unless --point chose another.",
    ),
    (
        "Grad-CAM",
        "Where lies what speaks for a class, at the named stage, relative to the strongest place of the clip. What "
        "speaks against the class is not shown.",
    ),
)


def clip_files(look):
    """The pictures and the video of one clip: {file name: (bytes, caption)}."""
    clip, files = look.clip, {}
    head = headline(look)
    files["overlay.mp4"] = encode_video(overlay_frames(look), len(clip) / SECONDS), _video_caption(look)
    for found in look.maps:
        where = _where(found)
        files[f"motion-{found.name}.png"] = pictures.motion_picture(clip, found, head), f"Displacement, {where}"
        files[f"confidence-{found.name}.png"] = pictures.confidence_picture(clip, found, head), f"Confidence, {where}"
    for point in look.points:
        x, y, t = point.point
        text = f"Self-similarity, {point.name}: of the cell at x {x:.0f}, y {y:.0f} in frame {t}"
        files[f"similarity-{point.name}.png"] = pictures.similarity_picture(clip, point, head), text
    for found in look.changes:
        text = f"Change of features to the neighbouring frame, {found.name}"
        files[f"change-{found.name}.png"] = pictures.change_picture(clip, found, head), text
    texts = [head, *(_cam_text(look, each) for each in look.cams)]
    files["grad-cam.png"] = pictures.grad_cam_picture(clip, look.cams, texts), f"Grad-CAM at {look.cams[0].stage}"
    return {name: (pages.picture_bytes(content), caption) for name, (content, caption) in files.items()}


def headline(look):
    """The prediction in a line."""
    label, probability = look.ranking[0]
    right = "" if look.truth is None else " — right" if look.truth == label else f" — in truth: {look.truth}"
    return f"{label} ({probability:.1%}){right}"


def motion_note(look):
    """What must be said of the motion shown, in a line, or an empty text."""
    if look.is_still:
        return "All frames of this clip are the same: there is no motion to see."
    if look.maps[0].from_block:
        return ""
    stage = look.maps[0].name
    what = (
        "its CMM modules see where features change, without a direction"
        if look.changes
        else "no motion block that compares frames"
    )
    return (
        f"This model has no displacements of its own ({what}). Those shown are the soft-argmax of the self-similarity "
        f"of its {stage} features: what a block put there could see, not what the model uses."
    )


def clip_section(name, look, files):
    """A clip's part of the page."""
    poster = overlay_frames(look)[len(look.clip) // 2]
    answers = [[label, f"{probability:.1%}"] for label, probability in look.ranking[:_NAMED]]
    facts = [
        ("clip", name),
        ("predicted", headline(look)),
        ("frames", f"{len(look.clip)} of {_size(look.clip)} pixels"),
    ]
    shown = []
    for file, (content, caption) in files.items():
        if file.endswith(".mp4"):
            # Larger than it is, it would only be blurred.
            style = f"max-width: {poster.shape[1]}px"
            shown.append(pages.element("div", pages.video(content, caption, poster), style=style))
        else:
            shown += [_wide(pages.picture(content, alt=caption)), pages.element("p", caption, class_="soft small")]
    heading = PurePath(name).name or name
    return pages.section(heading, pages.pairs(facts), pages.table((), answers), shown, note=motion_note(look))


def how_to_read():
    """The section that explains the pictures."""
    return pages.section("How to read the pictures", pages.details("What the colours mean", pages.pairs(_HOW_TO_READ)))


def embedding_section(title, note, picture):
    """The section of a set's features in the plane."""
    return pages.section(title, _wide(pages.picture(picture, alt=title)), note=note)


def failures_section(failures):
    """The section of files that could not be read: list of (name, reason); None where there is none."""
    return pages.section("Not readable", pages.table(("file", "why"), failures)) if failures else None


def write_files(folder, files):
    """Writes a clip's files into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (content, _) in files.items():
        write_bytes(folder / name, content)


def write_bytes(path, content):
    """Writes a file that is either the old one or the whole new one."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def write_page(path, title, subtitle, sections):
    """Writes the page."""
    text = pages.page(title, sections, subtitle, script=pages.PLAYING)
    write_atomically(path, text)


def folder_names(names):
    """A different folder name for each clip name, without what file systems do not take."""
    made, taken = [], set()
    for name in names:
        plain = (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "clip")[:80]
        different = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        made.append(next(text for text in different if text.casefold() not in taken))
        taken.add(made[-1].casefold())
    return made


def _where(found):
    times, rows, columns = found.similarity.shape[:3]
    step = found.size[0] / times
    slower = f"; its frames are {step:g} of the clip's apart, so that t+1 is {step:g} later" if step > 1 else ""
    return f"{found.name}: a map of {rows}×{columns} cells{slower}"


def _video_caption(look):
    left = [found.name for found in look.maps[BLOCKS:]]
    return f"Without {', '.join(left)}: there is room for {BLOCKS} blocks" if left else ""


def _cam_text(look, cam):
    if not cam.heat.any():
        return f"nothing speaks for: {look.labels[cam.label]} ({cam.probability:.1%})"
    return f"what speaks for: {look.labels[cam.label]} ({cam.probability:.1%})"


def _size(clip):
    return f"{clip.shape[2]}×{clip.shape[1]}"


def _wide(part):
    """A picture that keeps its size on a small screen, where it scrolls."""
    return pages.element("div", pages.element("div", part, style="min-width: 44rem"), class_="wide")
