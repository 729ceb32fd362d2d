"""What a node does with images of its own: find them, introduce itself, and put them into the run's table."""

from collections.abc import Mapping

from ff_flower.config import RunSpec, Scalar, SitePlace, site_places
from ff_flower.data import Splits, class_counts, in_table, load_own, own_info
from ff_flower.errors import ConfigError
from ff_flower.federation import Federation, Introduction
from ff_flower.metrics import rounded_count
from ff_flower.seeding import derive_seed

START = "start the SuperNode with --node-config \"name='Clinic A' data='folder:/srv/images'\""


def place_of(spec: RunSpec, node_config: Mapping[str, Scalar]) -> SitePlace:
    """Return the site's name and the place of its images: ``name`` and ``data`` of the node's configuration.

    A simulated node, which has neither, is the site of ``data.sites`` with its partition's number.

    Raises
    ------
    ConfigError
        When the configuration names no images, or lacks a name, or names something that is none.
    """
    if "data" in node_config:
        name, location = node_config.get("name"), node_config["data"]
        if not isinstance(name, str) or not isinstance(location, str):
            raise ConfigError(f"node-config: name and data must both be given, in quotes; {START}")
        return SitePlace(name, location)
    places, number = site_places(spec.data.sites), node_config.get("partition-id")
    if not isinstance(number, int) or not 0 <= number < len(places):
        rehearsal = "in simulation, set data.sites = 'north=folder:/a,south=folder:/b'"
        raise ConfigError(f"this node has no images, and data.name = 'sites' wants each node's own; {START}; {rehearsal}")
    return places[number]


def count_granularity(spec: RunSpec, node_config: Mapping[str, Scalar]) -> int:
    """Return to what multiples the node rounds numbers of images: the run's, or its own where that is coarser.

    Raises
    ------
    ConfigError
        When the node's own is not a positive whole number.
    """
    own = node_config.get("manifest.count-granularity", 1)
    if not isinstance(own, int) or own < 1:
        raise ConfigError(f"node-config: manifest.count-granularity = {own!r}: must be a whole number from 1; correct it")
    return max(own, spec.manifest.count_granularity)


def introduce(spec: RunSpec, node_config: Mapping[str, Scalar]) -> Introduction:
    """Return what the site tells of itself before a run; its images are read for it."""
    place, granularity = place_of(spec, node_config), count_granularity(spec, node_config)
    splits = _splits(spec, place)
    counts = {name: rounded_count(count, granularity) for name, count in sorted(class_counts(splits).items())}
    return Introduction(name=place.name, counts=counts, image_shape=splits.info.shape)


def splits_in_table(spec: RunSpec, place: SitePlace, federation: Federation) -> Splits:
    """Return the site's images with the labels of the run's table."""
    return in_table(_splits(spec, place), own_info(spec.data, federation.classes, federation.image_shape))


def _splits(spec: RunSpec, place: SitePlace) -> Splits:
    return load_own(place.location, spec.data, derive_seed(spec.seed, "site", place.name))
