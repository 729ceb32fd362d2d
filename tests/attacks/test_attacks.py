"""Every attack of the catalogue meets its rule, and costs the others nothing."""

import pytest
from catalogue import FAMILIES, outcome
from table import markdown
from victim import Victim

ATTACKS = [attack for family in FAMILIES.values() for attack in family]


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """Return the federation that is attacked."""
    return Victim.in_folder(tmp_path_factory.mktemp("victim"))


def test_honest_modules_pass(victim):
    """Where nobody lies, nothing is refused."""
    assert victim.receive(victim.honest[3]) == ([], 10)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_meets_its_rule(victim, attack):
    """Each attack is refused by the rule that the catalogue names, or, where it names none, passes unnoticed."""
    assert outcome(attack, victim) == [attack.rule] * attack.refusals


def test_the_table_says_what_happens():
    """Each attack has one row, which says whether it is caught, and by which rule."""
    rows = markdown({attack.name: [attack.rule] * attack.refusals for attack in ATTACKS}).splitlines()
    assert len(rows) == len(ATTACKS) + 2
    assert sum("| no |" in row for row in rows) == sum(not attack.rule for attack in ATTACKS)
