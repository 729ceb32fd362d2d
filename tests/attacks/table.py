"""The table of attacks in Markdown, from what happens: ``make attacks``."""

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from catalogue import FAMILIES, outcome
from victim import Victim


def markdown(found: Mapping[str, Sequence[str]]) -> str:
    """Return the table of what was found: the rules of the refusals by the attack's name."""
    lines = ["| family | attack | caught | rule |", "|---|---|---|---|"]
    for family, attacks in FAMILIES.items():
        for attack in attacks:
            rules = sorted(set(found[attack.name]))
            lines.append(
                f"| {family} | {attack.name} | {'yes' if rules else 'no'} | {', '.join(f'`{rule}`' for rule in rules)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Carry out every attack and print the table."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim.in_folder(Path(folder))
        table = markdown({attack.name: outcome(attack, victim) for attacks in FAMILIES.values() for attack in attacks})
        sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
