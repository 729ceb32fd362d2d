"""The label table of sites: stable, the same in any order, and clear about who cannot take part."""

import itertools
import json
import re

import pytest

from ff_flower.errors import ConfigError, VerificationError
from ff_flower.federation import Federation, Introduction, Tally, enrol


def site(name, *classes, shape=(1, 8, 8), pixels=(0, 255)):
    """Return the introduction of a site with ten images of each class."""
    return Introduction(name=name, counts=dict.fromkeys(classes, 10), image_shape=shape, value_range=pixels)


NORTH, SOUTH, WEST = site("north", "seven", "three"), site("south", "one"), site("west", "zero", "seven")


def test_the_table_does_not_depend_on_who_answers_first():
    """Every order of the introductions gives one table: sites and classes by name."""
    enrolments = [enrol(order, 3) for order in itertools.permutations((NORTH, SOUTH, WEST))]
    assert all(one == enrolments[0] for one in enrolments)
    assert enrolments[0].federation.sites == ("north", "south", "west")
    assert enrolments[0].federation.classes == ("one", "seven", "three", "zero")
    assert (enrolments[0].refused, enrolments[0].notes) == ((), ())


def test_places_of_an_earlier_session_are_kept():
    """Sites and classes that a table has keep their places, and later ones are appended by name."""
    before = enrol([WEST, SOUTH], 3).federation
    after = enrol([site("north", "three", "eight"), SOUTH, WEST], 3, known=before).federation
    assert (before.sites, before.classes) == (("south", "west"), ("one", "seven", "zero"))
    assert after.sites == ("south", "west", "north")
    assert after.classes == ("one", "seven", "zero", "eight", "three")


def test_excluded_sites_have_no_say_in_the_shape():
    """The most common shape is that of the sites that take part; an excluded site of another one is refused by it."""
    large = [site(name, "one", shape=(1, 28, 28)) for name in ("east", "west")]
    enrolled = enrol([*large, NORTH], 3, excluded={"east", "west"})
    assert enrolled.federation.image_shape == NORTH.image_shape and dict(enrolled.refused).keys() == {"east", "west"}


def test_a_fixed_table_has_its_order_and_refuses_other_classes():
    """With fixed classes labels are theirs, and a site with a class that is not among them is refused by its name."""
    found = enrol([NORTH, SOUTH], 2, fixed=("three", "seven", "nine"))
    assert found.federation.classes == ("three", "seven", "nine")
    assert found.refused == (("south", "its classes one are not in data.classes; add them there or rename them at the site"),)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (site("other", "one", shape=(1, 10, 8)), r"10 x 8 pixels, the run's 8 x 8; set data\.size"),
        (site("other", "one", shape=(3, 8, 8)), "3 channels, the run's 1; convert them to greyscale"),
        (site("other", "one", pixels=(0, 16)), r"\[0, 16\], the run's in \[0, 255\]; convert"),
    ],
    ids=["size", "channels", "range"],
)
def test_a_site_that_does_not_fit_is_refused_with_the_remedy(other, reason):
    """Other sides, channels or pixel values than most sites have keep a site out, and the reason says what to do."""
    found = enrol([NORTH, other, SOUTH], 3)
    assert found.federation.sites == ("north", "south")
    ((name, said),) = found.refused
    assert name == "other"
    assert re.search(reason, said)


def test_two_sites_of_one_name_are_both_refused():
    """Nobody can tell which of two sites of one name is the right one, so neither takes part."""
    found = enrol([NORTH, SOUTH, site("north", "nine")], 3)
    assert found.federation.sites == ("south",)
    assert found.refused == (
        ("north", "2 nodes call themselves 'north'; give every SuperNode a name of its own in its node-config"),
    )


def test_more_sites_than_places_are_refused_by_name():
    """When all places are taken the sites that come last by name are refused."""
    found = enrol([NORTH, SOUTH, WEST], 2)
    assert found.refused == (("west", "all 2 places are taken by north, south; raise num-clients"),)


def test_classes_that_look_alike_are_pointed_out():
    """Names that differ in case or spaces are different classes, and a note says so."""
    found = enrol([site("north", "Cat"), site("south", "cat ")], 2)
    assert found.federation.classes == ("Cat", "cat ")
    assert found.notes == ("classes 'Cat', 'cat ' count as different; rename them if they are one",)


def test_a_federation_survives_the_wire():
    """What is read is what was written, and a site finds its partition by its name alone."""
    federation = enrol([NORTH, SOUTH], 2).federation
    assert Federation.from_json(federation.to_json()) == federation
    assert federation.partition("south") == 1
    with pytest.raises(ConfigError, match="'west' has no place in this run"):
        federation.partition("west")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../north"},
        {"name": "north\n"},
        {"counts": {}},
        {"counts": {"one": 0}},
        {"counts": {"one": "ten"}},
        {"counts": {"o\u202ene": 3}},
        {"image_shape": [2, 8, 8]},
        {"image_shape": [1, 8]},
        {"path": "/srv/images"},
    ],
    ids=str,
)
def test_an_introduction_that_breaks_a_rule_is_refused(change):
    """Names, counts and shapes that cannot be are refused under the rule ``introduction``, and so is what nobody asked for."""
    with pytest.raises(VerificationError, match=r"^introduction: "):
        Introduction.from_json(json.dumps(json.loads(NORTH.to_json()) | change))


@pytest.mark.parametrize("counts", [{"server": [[-1]]}, {"server": [[0.5]]}, {"server": 3}, None])
def test_a_tally_that_breaks_a_rule_is_refused(counts):
    """Counts are whole numbers from 0."""
    with pytest.raises(VerificationError, match=r"^tally: "):
        Tally.from_json(json.dumps({"partition": 0, "counts": counts}))
