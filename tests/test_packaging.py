"""What an installation that is no checkout brings along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_configs_are_in_the_package(tmp_path):
    """All of them, found by their bare names where there is no checkout."""
    pytest.importorskip("setuptools")
    # With a build folder of its own, and without the compiler: the library is tested elsewhere.
    build = ["build", "-b", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")]
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), *build]
    environment = {**os.environ, "KERAS_STSS_NATIVE": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from keras_stss.config import find_config\n"
        "from keras_stss.config.recipes import list_recipes\n"
        "from keras_stss.models.presets import list_models\n"
        "assert len(list_models()) >= 30 and len(list_recipes()) >= 50\n"
        "print(*map(find_config, sys.argv[1:]), sep='\\n')"
    )
    names = sorted(path.stem for path in (ROOT / "configs").rglob("*.yaml"))
    found = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path / "lib", capture_output=True, text=True, check=True
    ).stdout.split()
    assert [Path(path).stem for path in found] == names
    home = tmp_path / "lib" / "keras_stss" / "configs"
    assert all((tmp_path / "lib" / path).is_relative_to(home) for path in found)
