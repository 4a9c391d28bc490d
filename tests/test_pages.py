"""What all HTML pages have in common, and the videos on them."""

import io

import av
import matplotlib.image
import numpy as np
import pytest
from browser import browser, find_browser
from conftest import square_clip
from markup import Parsed

from keras_stss import pages
from keras_stss.data.write_video import encode_video

HOSTILE = "<script>alert(\"1\")</script> & 'x' دفع إلى اليسار 押す \0\x1b \udce9"


def full_page():
    """A page with something of everything."""
    clip = square_clip(1, 3, height=31, width=39)
    shown = pages.video(encode_video(clip, 4), HOSTILE, clip[0])
    rows = [["b", "9.5%", pages.label(HOSTILE)], ["a", "10.0%", None], ["c", "-", 3]]
    return pages.page(
        HOSTILE,
        [
            pages.section("Same", "a text", pages.table(["name", "share", HOSTILE], rows, sortable=True), note=HOSTILE),
            None,
            pages.section("Same", pages.gallery(shown, pages.picture(clip[0], "caption", HOSTILE, pixels=True))),
            pages.section("Pairs", pages.pairs([(HOSTILE, 1)]), pages.details(HOSTILE, "inside", is_open=True)),
            pages.section("<Long>", pages.beside("x", pages.command("keras-stss " + "long" * 200))),
        ],
        subtitle=HOSTILE,
        script=pages.SORTING + pages.PLAYING + "// </script> \n",
    )


class TestMarkup:
    def test_text_is_escaped_and_markup_is_not(self):
        assert pages.escape(["<b>", pages.Markup("<i>"), None, 3]) == "&lt;b&gt;<i>3"
        assert pages.element("b", "<", class_='"', data_key=1, hidden=True, title=None) == (
            '<b class="&quot;" data-key="1" hidden>&lt;</b>'
        )
        assert pages.Markup("<i>") + "<" == "<i>&lt;"

    def test_what_is_no_text_is_said_as_text(self):
        pages.escape("\udce9\0\x1b\x85").encode("utf-8")
        assert pages.escape("a\udce9\0\nb") == "a\\udce9\ufffd\nb"


class TestPage:
    def test_is_well_formed_and_needs_nothing(self):
        found = Parsed(full_page())
        assert not found.problems
        assert found.text.count("alert") == 9 and len(found.all("script")) == 1
        assert [given["href"] for given in found.all("a")] == ["#same", "#same-1", "#pairs", "#long"]
        sources = [given[key] for _, given in found.tags for key in ("src", "poster") if key in given]
        assert len(sources) == 3 and all(source.startswith("data:") for source in sources)
        (video,) = found.all("video")
        assert video["preload"] == "none" and video["poster"].startswith("data:image/jpeg")

    def test_checker_sees_what_is_wrong(self):
        for text in ("<p><div></div></p>", "<b><i></b></i>", "<p>", '<a id="x"></a><b id="x"></b>', "<ul><b></b></ul>"):
            assert Parsed(text).problems, text

    def test_columns_of_numbers_stand_to_the_right(self):
        text = pages.table(["a", "b", "c"], [["1.5%", pages.element("i", "−2.5"), "x"], ["-", None, 3]])
        assert [given.get("class") for given in Parsed(text).all("th")] == ["n", "n", None]

    def test_headings_that_look_numbered_have_places_of_their_own(self):
        found = Parsed(pages.page("", [pages.section(name) for name in ("a", "a-2", "a", "A", "a-1")]))
        assert not found.problems and len(found.all("a")) == 5

    def test_pictures(self):
        array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
        content = pages.picture_bytes(array)
        np.testing.assert_array_equal(
            np.round(255 * matplotlib.image.imread(io.BytesIO(content))[..., :3]).astype(np.uint8), array
        )
        assert 'height="5" width="7"' in pages.picture(array[..., 0])
        # What loads late is missing on paper, and moves what a link leads to.
        assert "lazy" not in pages.picture(pages.picture_bytes(array))
        assert pages.data_uri(pages.picture_bytes(array, "jpeg")).startswith("data:image/jpeg;base64,")
        with pytest.raises(ValueError, match="uint8"):
            pages.picture(array / 255)
        with pytest.raises(ValueError, match="PNG"):
            pages.picture(b"<svg>")


class TestVideo:
    @pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 18), (5, 33, 41), (9, 64, 48)])
    def test_frames_come_back(self, frames, height, width):
        shade = np.linspace(20, 235, width)[None, None, :, None]
        clip = np.broadcast_to(shade, (frames, height, width, 3)).copy()
        clip[..., 0] = 200
        clip = clip.round().astype(np.uint8)
        content = encode_video(clip, 12.5, crf=10)
        assert 0 < content.find(b"moov") < content.find(b"mdat")
        with av.open(io.BytesIO(content)) as file:
            stream = file.streams.video[0]
            found = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 12.5 or frames == 1
        assert found.shape == (frames, height + height % 2, width + width % 2, 3)
        assert np.abs(found[:, :height, :width].astype(int) - clip).mean() < 6

    @pytest.mark.parametrize("frames", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3))])
    def test_what_are_no_frames(self, frames):
        with pytest.raises(ValueError, match="frames must be uint8"):
            encode_video(frames, 12)

    def test_rate_of_nothing(self):
        with pytest.raises(ValueError, match="rate must be positive"):
            encode_video(np.zeros((1, 2, 2, 3), np.uint8), 0)


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path):
    """Nothing in the console, nothing wider than a phone, tables sort, videos play."""
    path = tmp_path / "page.html"
    path.write_text(full_page(), encoding="utf-8")
    names = "Array.from(document.querySelectorAll('tbody td:first-child')).map(cell => cell.textContent).join('')"
    with browser() as chromium:
        chromium.open(path, 375, 700, dark=True)
        assert chromium.run("document.documentElement.scrollWidth") == 375
        assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
        chromium.open(path)
        assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        order = []
        for column in (1, 1, 0):
            chromium.run(f"document.querySelectorAll('th button')[{column}].click()")
            order.append(chromium.run(names))
        assert order == ["abc", "cba", "abc"]
        played = """(async () => {
          const video = document.querySelector('video');
          document.querySelector('.screen').click();
          while (!(video.currentTime > 0)) await new Promise(done => setTimeout(done, 50));
          return [video.videoWidth, video.videoHeight, Math.round(video.duration * 10)];
        })()"""
        assert chromium.run(played) == [40, 32, 20]
        assert chromium.messages == []
