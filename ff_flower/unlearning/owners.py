"""Whose partition is whose: a partition's number is its owner's name, unless sites bring their own images under names."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..config import RunSpec
from ..errors import RunError
from ..run_directory import RunDirectory

SITES = "sites.json"  # written when sites introduce themselves; the position in its table is the partition


def owner_names(run: Path) -> Mapping[str, str]:
    """Return the owner by partition, both as text, of sites that have introduced themselves; empty for a partitioned image set.

    Raises
    ------
    RunError
        Where the file that says so cannot be read.
    """
    path = run / SITES
    if not path.exists():
        return {}
    try:
        return {str(place): str(name) for place, name in enumerate(json.loads(path.read_text())["federation"]["sites"])}
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(f"{path}: not as it was written ({error}); restore it from a copy") from error


def participants(run: Path, spec: RunSpec) -> list[str]:
    """Return the partitions, as text, of the owners who take part in ``spec``."""
    if not spec.data.own:
        return [str(partition) for partition in spec.participants]
    return [partition for partition, owner in owner_names(run).items() if owner not in spec.exclusion.owners]


def drop_introductions(directory: RunDirectory, spec: RunSpec) -> None:
    """Let the file of the sites keep no more than the place of those whom ``spec`` excludes."""
    if not (directory.path / SITES).exists():
        return
    values = directory.read_json(SITES)
    values["introductions"] = [one for one in values["introductions"] if one["name"] not in spec.exclusion.owners]
    directory.write_json(SITES, values)
