"""Finding, reading and writing config files, and saying what is wrong with one."""

import difflib
import re
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from keras_stss.config.blocks import BLOCKS, InsertConfig
from keras_stss.config.data import DataConfig
from keras_stss.config.model import ModelConfig, NetworkConfig
from keras_stss.config.recipe import EvaluateConfig, TrainConfig
from keras_stss.config.section import TEXT, ConfigError, Section


class _Loader(yaml.SafeLoader):
    """YAML as people read it: 1e-4 is a number, and 010, on or 2020-01-01 are text; no key is given twice.

    PyYAML's own rules (YAML 1.1) make 010 the number 8 and ``on`` true, so a group called 010 would be lost unseen.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class Config(Section):
    """A whole file."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _enough_frames(self):
        largest = max((member.frames for member in self.model.ensemble), default=self.data.frames)
        if self.data.frames != largest:
            raise ValueError(
                "data.frames must be the frames of the ensemble's largest model. Received: "
                f"data.frames={self.data.frames}, largest={largest}"
            )
        return self


#: The parts of a folder of configs, searched in this order.
PARTS = ("", "models", "recipes", "ablations")
#: Folders of the configs that this library ships: beside the package in a checkout, in it when installed.
SHIPPED = tuple(
    folder / part
    for folder in (Path(__file__).resolve().parents[1] / "configs", Path(__file__).resolve().parents[2] / "configs")
    for part in PARTS
)


def find_config(name):
    """Path of a config: a path as given, or a bare name looked up in ``configs/`` and its ``PARTS``.

    Args:
        name: ``demo``, ``demo.yaml`` or a path.

    Raises:
        ConfigError: where there is no such file, with the names that there are.
    """
    given = Path(name)
    folders = (*(Path("configs", part) for part in PARTS), *SHIPPED)
    tried = [given]
    if len(given.parts) == 1:
        file_name = given.name if given.suffix in (".yaml", ".yml") else f"{given.name}.yaml"
        tried += [folder / file_name for folder in (Path(), *folders)]
    for path in tried:
        if path.is_file():
            return path
    found = sorted({path for folder in folders for path in folder.glob("*.yaml")})
    where = f" here, and {file_name} in configs/ and its folders {', '.join(PARTS[1:])}" if len(tried) > 1 else ""
    top = sorted({path.name for path in found if path.parent.name not in PARTS})
    more = len({path.name for path in found} - set(top))
    raise ConfigError(
        f"no config {str(name)!r}: looked for {given}{where}."
        + _nearest(given.name, [path.name for path in found])
        + (f" There are: {', '.join(top)}" + (f", and {more} in its folders." if more else ".") if found else "")
    )


def load_config(name, overrides=()):
    """Reads and checks a config file.

    Args:
        name: path, or bare name looked up in ``configs/``.
        overrides: ``"key.path=value"`` strings; values are read as YAML.

    Returns:
        A :class:`Config`.

    Raises:
        ConfigError: naming every fault at once.
    """
    path = find_config(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold the sections {', '.join(Config.model_fields)}. Received: {type(values).__name__}"
        )
    return parse_config(values, str(path), overrides)


def parse_config(values, source="config", overrides=()):
    """Checks a nested dictionary after ``"key.path=value"`` overrides; raises :class:`ConfigError`."""
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
    raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def dump_config(config):
    """The config as YAML text, every value spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def list_keys(section=Config, prefix=""):
    """Every key of a config file: (dotted key, default as text, meaning)."""
    rows = []
    for name, field in section.model_fields.items():
        inner = _classes(field.annotation)
        if inner and name not in ("insert", "ensemble"):
            rows += list_keys(inner[0], f"{prefix}{name}.")
            continue
        default = "(must be given)" if field.is_required() else field.get_default(call_default_factory=True)
        rows.append((prefix + name, str(default), field.description or ""))
        if name == "insert":
            for block in BLOCKS:
                section = _classes(InsertConfig.model_fields[block].annotation)[0]
                rows += list_keys(section, f"{prefix}insert.STAGE.{block}.")
            field = InsertConfig.model_fields["parallel"]
            rows.append((f"{prefix}insert.STAGE.parallel", str(field.default), field.description))
    return rows


def _apply_override(values, override):
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(f"an override must read key.path=value, for example train.epochs=10. Received: {override!r}")
    if _kind_at(key.split(".")) in TEXT and text[:1] not in "'\"":
        value = None if text in ("", "null", "~") else text  # as it stands: a group 010 is not the number 8
    else:
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {key} is not valid YAML. Received: {text!r}") from None
    set_key(values, key, value)


def _kind_at(location):
    """The type of a key, or None where there is no such key."""
    section = _section_at(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return field.annotation if field else None


def set_key(values, key, value):
    """Sets a dotted key in a nested dictionary; raises :class:`ConfigError` where the way leads through a value."""
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        if isinstance(place, list):
            place = _member(place, parent, key)
            continue
        child = place.get(parent)
        if child in BLOCKS:
            child = place[parent] = {child: {}}  # a block by its bare name
        elif child is None:
            child = place[parent] = {}
        elif not isinstance(child, dict | list):
            raise ConfigError(f"{key} cannot be set: {parent} holds {child!r}, not a section")
        place = child
    if isinstance(place, list):
        raise ConfigError(f"{key} cannot be set: {parents[-1]} is a list; name a key of a member, {key}.KEY=…")
    place[last] = value


def _member(members, number, key):
    """The section at a place of a list, such as the first model of an ensemble."""
    if not number.isdecimal() or int(number) >= len(members) or not isinstance(members[int(number)], dict):
        raise ConfigError(f"{key} cannot be set: the list has sections 0 to {len(members) - 1}. Received: {number}")
    return members[int(number)]


def _describe(fault):
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *parents, name = fault["loc"]
        section = _section_at(parents)
        known = [key for key in section.model_fields if key != "sequence"] if section else []
        return f"unknown key {location}.{_nearest(str(name), known)} Known here: {', '.join(known)}."
    if fault["type"] == "missing":
        return f"{location} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not location:
        return message  # of sections that do not go together
    received = "" if isinstance(fault["input"], dict | BaseModel) else f" Received: {fault['input']!r}"
    return f"{location}: {message}" + (received if "Received" not in message else "")


def _section_at(location):
    """The section at a place such as ("model", "insert", "res3", "selfy"), or None."""
    section, stages = Config, False
    for part in location:
        if isinstance(part, int) or part.isdecimal():
            continue  # a member of a list
        if stages:
            section, stages = InsertConfig, False  # the keys of `insert` are stages, not fields
            continue
        field = section.model_fields.get(part) if section else None
        stages = field is not None and part == "insert" and issubclass(section, NetworkConfig)
        section = next(iter(_classes(field.annotation)), None) if field is not None else None
    return section


def _classes(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for argument in getattr(annotation, "__args__", ()) for cls in _classes(argument)]


def _nearest(name, known):
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""
