"""What an error may say of a site that brings its own images: neither a path nor a file's name leaves it."""

import logging
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from ff_flower.config import Scalar
from ff_flower.data import own_location
from ff_flower.errors import DataError, FederatedFactoryError

logger = logging.getLogger("flwr")

ASIDE = "the SuperNode's log says more"
# Words of remedies by which folders are called, too: a remedy that holds one of them says nothing of a site's folders.
_COMMON = {"class", "classes", "data", "folder", "folders", "image", "images", "labels", "share", "size", "test", "train"}
_PATH = re.compile(r"(?:(?<![\w/])~?|\b[A-Za-z]:)[/\\][^\s'\",;:()]+")


def reason_of(error: Exception, node_config: Mapping[str, Scalar]) -> str:
    """Return what the server is told of ``error``, in one sentence.

    A node of a simulation tells it whole. One with ``data`` in its configuration writes it to its own log; of an error that names
    an image file the server is told the rule and the remedy, of others what is left without paths, and of errors that are not
    this project's the type alone.
    """
    name = "" if isinstance(error, FederatedFactoryError) else f"{type(error).__name__}: "
    if "data" not in node_config:
        return f"{name}{error}"
    logger.error("%s%s", name, error)
    if name:
        return f"{name}{ASIDE}"
    text, path = str(error), own_location(str(node_config["data"]))
    if isinstance(error, DataError):
        text = text.partition("; ")[2] or type(error).__name__
    text = _PATH.sub("(a path)", text)
    remedy = isinstance(error, DataError) and "; " not in str(path)  # no path stands in front of it any more
    spared = _COMMON if remedy else set[str]()
    if any(secret in text for secret in _secrets(path, spared)):
        text = type(error).__name__
    return f"{text}; {ASIDE}"


def _secrets(path: Path, spared: Set[str]) -> Iterator[str]:
    """Yield the path of the site's images, its folders but those whose name is ``spared``, and the names of its files."""
    yield str(path)
    yield from (part for part in path.parts[1:] if len(part) > 3 and part not in spared)
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file() and len(file.stem) > 1:
                yield file.name
                if rest := file.name.partition("; ")[2]:  # what is left of it behind the first "; " of a sentence
                    yield rest
