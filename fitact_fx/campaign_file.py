"""A campaign in words, from a TOML file, from flags, or from a store: that there is nothing unknown or wrong in it.

Words are plain JSON values, which a store can keep: the keys of `KEYS`, and variants, a table for each by name.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitact_fx.campaign_keys import KEYS, TEXT, Form
from fitact_fx.errors import CampaignError, close_to

Words = dict[str, Any]
CIFAR10 = "cifar10:"
ARRAYS = ".npz"
VARIANT = ("model", "weights", "hardened")
_PATHS = ("weights", "hardened", "store", "html")
_FORMS: Mapping[str, Form] = {key.name: key.form for key in KEYS}


def read_file(path: str | Path) -> Words:
    """The words of a TOML file, paths in it being relative to its folder.

    CampaignError for a missing file, one that is no TOML, unknown keys, and values of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise CampaignError(f"there is no file {path};\n  give the path of a TOML file, or say it all with flags")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CampaignError(f"{path} is no TOML: {error};\n  see fitact-fx campaign --help for an example") from error
    words = checked(document, str(path))
    words |= _placed(words, path.parent)
    for variant in words.get("variants", {}).values():
        variant |= _placed(variant, path.parent)
    return words


def checked(document: Mapping[str, Any], source: str) -> Words:
    """The same with every value in its form; CampaignError names the key and the source of a wrong one."""
    words: Words = {}
    for name, value in document.items():
        if name == "variants":
            words[name] = _variants(value, source)
        elif name not in _FORMS:
            raise _unknown(name, source, [*_FORMS, "variants"])
        else:
            words[name] = _read(name, _FORMS[name], value, source)
    return words


def variant_of(text: str) -> tuple[str, dict[str, str]]:
    """`plain=torchvision:resnet18,weights=FILE,hardened=FILE` -> its name and what it is; all but the name may lack."""
    first, *others = text.split(",")
    name, _, model = first.partition("=")
    said = {"model": model} if model else {}
    for other in others:
        key, _, value = other.partition("=")
        if key not in VARIANT or not value or key in said:
            form = "NAME[=SPEC][,weights=FILE][,hardened=FILE]"
            raise CampaignError(f"--variant {text!r} is none;\n  write {form}, or a TOML file for names with commas")
        said[key] = value
    if not name.strip():
        raise CampaignError(f"--variant {text!r} has no name;\n  write NAME=SPEC, such as plain=torchvision:resnet18")
    return name, said


def _variants(table: object, source: str) -> dict[str, dict[str, str]]:
    if not isinstance(table, dict) or not table:
        raise CampaignError(f'variants in {source} is no table;\n  write [variants.plain], and under it model = "SPEC"')
    return {name: _variant(f"variants.{name}", said, source) for name, said in table.items()}


def _variant(name: str, said: object, source: str) -> dict[str, str]:
    if isinstance(said, str):
        said = {"model": said}
    if not isinstance(said, dict):
        raise CampaignError(f'{name} in {source} is {_shown(said)};\n  write [{name}], and under it model = "SPEC"')
    for key in said:
        if key not in VARIANT:
            raise _unknown(f"{name}.{key}", source, [f"{name}.{each}" for each in VARIANT])
    return {key: _read(f"{name}.{key}", TEXT, value, source) for key, value in said.items()}


def _read(name: str, form: Form, value: object, source: str) -> Any:
    try:
        return form.read(value)
    except (TypeError, ValueError) as error:
        raise CampaignError(f"{name} in {source} is {_shown(value)};\n  give {form.name}") from error


def _shown(value: object) -> str:
    return "a table" if isinstance(value, dict) else repr(value)


def _unknown(name: str, source: str, names: list[str]) -> CampaignError:
    close = close_to(name, names)
    return CampaignError(f"{source} has an unknown key {name!r}{close};\n  see fitact-fx campaign --help for all keys")


def _placed(words: Mapping[str, Any], folder: Path) -> Words:
    """Those of the words that are paths, seen from the current folder."""
    placed = {name: str(folder / words[name]) for name in _PATHS if name in words}
    data = words.get("data", "")
    if data.startswith(CIFAR10):
        placed["data"] = CIFAR10 + str(folder / data.removeprefix(CIFAR10))
    elif data.endswith(ARRAYS):
        placed["data"] = str(folder / data)
    return placed
