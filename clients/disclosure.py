"""What an error may say of a site that brings its own images: neither a path nor a file's name leaves it."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path

from ff_flower.config import Scalar
from ff_flower.data import own_location
from ff_flower.errors import ConfigError, DataError, FederatedFactoryError

logger = logging.getLogger("flwr")

ASIDE = "the SuperNode's log says more"
# Words of remedies by which folders are called, too: a remedy that holds one of them says nothing of a site's folders.
_COMMON = {"class", "classes", "data", "folder", "folders", "image", "images", "labels", "share", "size", "test", "train"}
_MASK = "(a path)"
_QUOTED = re.compile(r"(['\"](?:folder:|npz:)?)(?:~|(?:[A-Za-z]:)?[/\\])[^'\"]*(?=['\"])")
_PATH = re.compile(r"(?:(?<![\w/])(?:~[\w.-]*)?|\b[A-Za-z]:)[/\\][^\s'\",;:()]+|(?<![\w/])~[\w.-]+")
# A path with spaces leaves its end behind: what begins with one goes on with ": ", and no slash stays but that of a lone "~/".
_REST = re.compile(r"^\(a path\)(?!: |$)|(?<!\s~)[/\\]|[/\\](?=\S)")
_CONFIGURED = ("signing-key", "public-keys")  # what a node's configuration names beside its images
_VARIABLES = ("FF_RUNS", "FF_DATA")


def reason_of(error: Exception, node_config: Mapping[str, Scalar]) -> str:
    """Return what the server is told of ``error``, in one sentence.

    A node of a simulation tells it whole. One with ``data`` in its configuration writes it to its own log; of an error that names
    an image file the server is told the rule and the remedy, of others what is left without paths. Of errors that are not this
    project's, or in which a part of a path may be left, it is told the type alone.
    """
    name = "" if isinstance(error, FederatedFactoryError) else f"{type(error).__name__}: "
    if "data" not in node_config:
        return f"{name}{error}"
    logger.error("%s%s", name, error)
    if name:
        return f"{name}{ASIDE}"
    text, path = str(error), _images(str(node_config["data"]))
    if isinstance(error, DataError):
        text = text.partition("; ")[2] or type(error).__name__
    text = _without_paths(text, node_config)
    remedy = isinstance(error, DataError) and "; " not in str(path)  # no path stands in front of it any more
    spared = _COMMON if remedy else set[str]()
    if _REST.search(text) or any(secret in text for secret in _secrets(path, spared)):
        text = type(error).__name__
    return f"{text}; {ASIDE}"


def _images(location: str) -> Path:
    """Return the place of the site's images, as it is written where it begins with a home that is not there."""
    try:
        return own_location(location)
    except ConfigError:
        return Path(location.partition(":")[2])


def _without_paths(text: str, node_config: Mapping[str, Scalar]) -> str:
    """Mask what is quoted as a path, what begins with a place that is known, spaces and all, and what else looks like a path."""
    text = _QUOTED.sub(rf"\1{_MASK}", text)
    for place in sorted(_places(node_config), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(place)}(?![\w-])", _MASK, text)
    text = _PATH.sub(_MASK, text)
    return re.sub(rf"(?:{re.escape(_MASK)})+", _MASK, text)


def _places(node_config: Mapping[str, Scalar]) -> set[str]:
    """Return the folders and files that the site has named beside its images, its user's home and the working directory."""
    named = [str(node_config.get(key, "")) for key in _CONFIGURED] + [os.environ.get(name, "") for name in _VARIABLES]
    written = {form for one in named if one for form in (one, os.path.normpath(os.path.expanduser(one)))}  # noqa: PTH111
    written.add(os.path.expanduser("~"))  # noqa: PTH111 - where pathlib raises
    with suppress(OSError, ValueError):  # the working directory may be gone
        written |= {os.path.realpath(one) for one in (*written, os.curdir)}
    return {one for one in written if len(Path(one).parts) > 1 or Path(one).suffix}


def _secrets(path: Path, spared: Set[str]) -> Iterator[str]:
    """Yield the path of the site's images, its folders but those whose name is ``spared``, and the names of its files."""
    yield str(path)
    yield from (part for part in path.parts[1:] if len(part) > 3 and part not in spared)
    for _, _, names in os.walk(path):  # which passes by what may not be read
        for name in names:
            if len(Path(name).stem) > 1:
                yield name
                if rest := name.partition("; ")[2]:  # what is left of it behind the first "; " of a sentence
                    yield rest
