"""The models of the papers, by name."""

from fnmatch import fnmatchcase

from keras_stss.config.files import SHIPPED


def list_models(pattern=None):
    """Names of the papers' models, for :func:`keras_stss.build_model` and ``--config``.

    Args:
        pattern: with ``*``, ``?`` and ``[…]`` as in file names; None lists all.

    Returns:
        Sorted list of names such as ``"selfynet_tsm_resnet50_8f"``.
    """
    names = {path.stem for folder in SHIPPED if folder.name == "models" for path in folder.glob("*.yaml")}
    return sorted(name for name in names if pattern is None or fnmatchcase(name, pattern))
