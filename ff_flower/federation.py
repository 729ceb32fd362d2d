"""Sites that bring their own images: how they introduce themselves, and the one label table that the server makes of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError, VerificationError
from .registry.manifest import Channels, Name, Owner, Side

PIXELS = (0, 255)
Shape = tuple[Channels, Side, Side]


class _Told(BaseModel):
    """Base of what crosses the wire as JSON; whatever does not fit is refused under the rule of its class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is refused (VerificationError, rule by the class's name)."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:80]
            raise VerificationError(cls.__name__.lower(), f"{place!r}: {first['msg'][:200]}; send what to_json writes") from None


class Introduction(_Told):
    """What a site tells of itself before a run: never a path, a file's name or an image.

    Attributes
    ----------
    name : str
        By which its modules are owned.
    counts : dict from str to int
        Training images per class, by the classes' names, rounded as ``manifest.count_granularity`` says.
    image_shape : tuple of int
        (C, H, W) after resizing.
    value_range : tuple of int
        Least and largest value that a pixel may have.
    """

    name: Owner
    counts: dict[Name, Annotated[int, Field(ge=1, lt=2**63)]] = Field(min_length=1, max_length=10_000)
    image_shape: Shape
    value_range: tuple[int, int] = PIXELS


class Tally(_Told):
    """A site's count of right and wrong classes on its held-out images.

    Attributes
    ----------
    partition : int
        The site's partition.
    counts : dict
        By what was scored: (K, K) images by class and most probable class, see `metrics.confusion_counts`.
    """

    partition: Annotated[int, Field(ge=0, lt=100_000)]
    counts: dict[Name, list[list[Annotated[int, Field(ge=0, lt=2**40)]]]]


class Federation(_Told):
    """The label table and the places of the sites: what the server sends with every request.

    Attributes
    ----------
    sites : tuple of str
        Names; the position is the partition.
    classes : tuple of str
        Names; the position is the label.
    image_shape : tuple of int
        (C, H, W) of all images.
    """

    sites: tuple[Owner, ...]
    classes: tuple[Name, ...]
    image_shape: Shape

    def partition(self, name: str) -> int:
        """Return the partition of a site; ConfigError for one that has none."""
        if name not in self.sites:
            raise ConfigError(f"site {name!r} has no place in this run; the server's log says why; start the run again with it")
        return self.sites.index(name)

    def digest(self) -> str:
        """Return the SHA-256 of the table: what a classifier's outputs mean."""
        return hashlib.sha256(json.dumps([self.classes, self.image_shape]).encode()).hexdigest()


@dataclass(frozen=True)
class Enrolment:
    """Who takes part.

    Attributes
    ----------
    federation : Federation
        Table and places; it holds sites of earlier sessions too.
    refused : tuple of (str, str)
        Name and reason of every site that does not take part.
    notes : tuple of str
        What a person should look at.
    """

    federation: Federation
    refused: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def enrol(
    introductions: Sequence[Introduction],
    places: int,
    fixed: Sequence[str] = (),
    known: Federation | None = None,
    excluded: Collection[str] = (),
) -> Enrolment:
    """Make the label table, and give sites their partitions.

    Parameters
    ----------
    introductions : sequence of Introduction
        In any order; the result does not depend on it.
    places : int
        How many sites there may be.
    fixed : sequence of str
        The classes by label, where the run fixes them; empty takes those that sites name, sorted.
    known : Federation, optional
        The table of an earlier session of the run: its sites and classes keep their places, later ones are appended.
    excluded : collection of str
        Sites without a say in the images' shape, and without a place where an earlier session gave them none.
    """
    times = Counter(one.name for one in introductions)
    shape = known.image_shape if known else _most_common_shape([one for one in introductions if one.name not in excluded])
    taken = list(known.sites) if known else []
    accepted, refused = [], []
    for one in sorted(introductions, key=lambda one: one.name):
        reason = _conflict(one, times, shape, fixed)
        if not reason and one.name not in taken:
            if known and one.name in excluded:
                reason = "the run excludes it, and began without it"
            elif len(taken) < places:
                taken.append(one.name)
            else:
                reason = f"all {places} places are taken by {', '.join(taken)}; raise num-clients"
        if reason:
            refused.append((one.name, reason))
        else:
            accepted.append(one)
    classes = list(known.classes) if known else list(fixed)
    classes += sorted({name for one in accepted for name in one.counts} - set(classes))
    federation = Federation(sites=tuple(taken), classes=tuple(classes), image_shape=shape)
    return Enrolment(federation, tuple(dict.fromkeys(refused)), tuple(_look_alikes(classes)))


def _most_common_shape(introductions: Sequence[Introduction]) -> Shape:
    """Return the shape that most sites have, of equally common ones that of the first site by name."""
    shapes = [one.image_shape for one in sorted(introductions, key=lambda one: one.name)]
    return Counter(shapes).most_common(1)[0][0] if shapes else (1, 1, 1)


def _conflict(one: Introduction, times: Counter[str], shape: Shape, fixed: Sequence[str]) -> str:
    """Return why a site cannot take part; empty where it can."""
    if times[one.name] > 1:
        return f"{times[one.name]} nodes call themselves {one.name!r}; give every SuperNode a name of its own in its node-config"
    if one.value_range != PIXELS:
        return f"its pixels lie in {list(one.value_range)}, the run's in {list(PIXELS)}; convert its images to 8 bits per channel"
    if unnamed := sorted(set(one.counts) - set(fixed)) if fixed else []:
        return f"its classes {', '.join(unnamed)} are not in data.classes; add them there or rename them at the site"
    if one.image_shape[0] != shape[0]:
        wanted = "greyscale" if shape[0] == 1 else "RGB"
        return f"its images have {one.image_shape[0]} channels, the run's {shape[0]}; convert them to {wanted}"
    if one.image_shape != shape:
        sides = "{1} x {2}".format
        return (
            f"its images measure {sides(*one.image_shape)} pixels, the run's {sides(*shape)}; set data.size, so that all resize"
        )
    return ""


def _look_alikes(classes: Sequence[str]) -> list[str]:
    """Return a sentence for classes whose names differ in case or spaces only."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    several = [", ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    return [f"classes {names} count as different; rename them if they are one" for names in several]
