"""A window that shows pictures, by Tk, which comes with Python."""

import numpy as np

from keras_stss.config import ConfigError


class Window:
    """Shows one picture after the other.

    Args:
        title: of the window.

    Attributes:
        is_closed: whether the user has closed it.

    Raises:
        ConfigError: where there is no display, or no Tk.
    """

    def __init__(self, title):
        try:
            import tkinter

            self._root = tkinter.Tk(className="keras-stss")
        except (ImportError, RuntimeError) as error:
            raise ConfigError(_why(error)) from None
        except tkinter.TclError as error:
            raise ConfigError(_why(error)) from None
        self._tkinter, self.is_closed = tkinter, False
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._end)
        for key in ("<Escape>", "q"):
            self._root.bind(key, self._end)
        self._label, self._image = tkinter.Label(self._root, borderwidth=0), None
        self._label.pack()

    def show(self, picture):
        """Shows a picture, uint8 (H, W, 3)."""
        if self.is_closed:
            return
        height, width = picture.shape[:2]
        content = b"P6 %d %d 255 " % (width, height) + np.ascontiguousarray(picture).tobytes()
        image = self._tkinter.PhotoImage(master=self._root, data=content, format="PPM")
        self._label.configure(image=image)
        self._image = image  # Tk does not hold it
        self._root.update()

    def close(self):
        """Takes the window away."""
        if self._root is not None:
            self._root.destroy()
            self._root = None

    def _end(self, *_):
        self.is_closed = True


def _why(error):
    return (
        f"no window can be opened here ({error}): write the video with --out FILE.mp4, or look at it on the way with "
        "--out - and a player that reads a pipe, such as mpv -"
    )
