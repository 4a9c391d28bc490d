"""Gives the FFmpeg libraries of PyAV's wheel their plain names, by links, where torchcodec is told to look."""

import re
import sys
import sysconfig
from pathlib import Path

libraries = Path(sysconfig.get_path("purelib"), "av.libs")
for library in libraries.glob("lib*-*.so.*"):
    if match := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)\..*", library.name):
        link = libraries / f"{match[1]}.so.{match[2]}"
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
folder = Path(sys.prefix, "lib", "ffmpeg")
folder.unlink(missing_ok=True)
folder.symlink_to(libraries)
