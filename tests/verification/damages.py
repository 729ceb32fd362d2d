"""How tests damage a run directory, and ask what is broken in it."""

import json

from ff_flower.verification import verify_run


def broken(path, policy):
    """Return place and rule of what is broken in a run directory."""
    return {(finding.place, finding.rule) for finding in verify_run(path, policy)[0] if finding.broken}


def first(folder, pattern):
    """Return the first file of a pattern, sorted."""
    return sorted(folder.glob(pattern))[0]


def edit_json(path, change):
    """Apply ``change`` to what a JSON file holds."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def put_link(path, elsewhere):
    """Move a file or folder away, and leave a link to it."""
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
