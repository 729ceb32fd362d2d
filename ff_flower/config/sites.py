"""Sites that bring their own images: what they are called, where the images lie, and what they tell of them."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError
from ..machine import path_of
from .base import Count, Spec

OWN: Final = "sites"  # the value of data.name with which every node brings its own images
OWNER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")  # what a module's owner may be called
LONGEST_NAME = 128  # characters of the name of a class or of an image set in a manifest
KINDS_OF_PLACES = ("folder", "npz")


class ManifestSpec(Spec):
    """What a node tells of its images.

    Attributes
    ----------
    count_granularity : int
        Numbers of images are told as multiples of this, at least one of them; 1 tells them as they are. A node may ask for a
        larger one of its own in its node-config.
    """

    count_granularity: Count = 1


@dataclass(frozen=True)
class SitePlace:
    """A site's name in public, and where its images lie: ``folder:/path`` or ``npz:/path/file.npz``."""

    name: str
    location: str

    def __post_init__(self) -> None:
        """Bring the name into the form of a manifest's owner, and refuse a place that is none."""
        object.__setattr__(self, "name", site_name(self.name))
        if not is_place(self.location):
            raise ConfigError(
                f"data of site {self.name!r}: must be folder: or npz: with an absolute path; "
                "for example data='folder:/srv/images'"
            )


def is_place(location: str) -> bool:
    """Tell whether a text is ``folder:`` or ``npz:`` with an absolute path."""
    kind, colon, path = location.partition(":")
    return bool(colon) and kind in KINDS_OF_PLACES and path_of(path).is_absolute()


def normal_form(text: str) -> str:
    """Return the one spelling of a text in which names are compared and manifests are written, Unicode's NFC."""
    return unicodedata.normalize("NFC", text)


def is_name(text: str) -> bool:
    """Tell whether a manifest can name a class or an image set so: printable, and not too long in its `normal_form`."""
    return text.isprintable() and 1 <= len(normal_form(text)) <= LONGEST_NAME


def site_name(text: str) -> str:
    """Return the name by which a site's modules are owned: spaces become hyphens, anything else must fit a manifest.

    Raises
    ------
    ConfigError
        If the name does not fit.
    """
    name = re.sub(r"\s+", "-", normal_form(text).strip())
    if not OWNER.fullmatch(name):
        raise ConfigError(
            f"name {text[:80]!r} of a site: must be 1 to 64 of A-Z a-z 0-9 . _ - and spaces, no dot in front; choose another"
        )
    return name


def site_places(text: str) -> tuple[SitePlace, ...]:
    """Read ``data.sites``: ``north=folder:/a,south=npz:/b.npz``, in the order of simulated nodes.

    Raises
    ------
    ConfigError
        If a part is not ``name=folder:/path`` or ``name=npz:/path``, or two have one name.
    """
    places = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, location = part.partition("=")
        if not equals:
            raise ConfigError(f"data.sites: {part!r} must be name=folder:/path or name=npz:/path; separate sites by commas")
        places.append(SitePlace(name, location.strip()))
    names = [place.name for place in places]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"data.sites: {', '.join(twice)} must stand there once only; give every site its own name")
    return tuple(places)


def class_names(text: str) -> tuple[str, ...]:
    """Read ``data.classes``: names separated by semicolons, in the order of their labels.

    Raises
    ------
    ConfigError
        If a name stands there twice, or cannot be that of a class in a module's manifest.
    """
    names = tuple(filter(None, (normal_form(name.strip()) for name in text.split(";"))))
    if wrong := [name for name in names if not is_name(name)]:
        raise ConfigError(
            f"data.classes: {wrong[0][:80]!r} must be at most {LONGEST_NAME} printable characters; rename the class"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"data.classes: {', '.join(twice)} must stand there once only; every class has one label")
    return names
