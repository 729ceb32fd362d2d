"""The folder that ``flwr run`` is pointed at: Flower looks at every file below it, for seconds where a virtual environment is."""

import re
import shutil
import tomllib
from pathlib import Path

_WHOLE_FOLDER = re.compile(r"/?([\w.-]+)/\*\*")


def copy_of_app(app: Path, folder: Path) -> Path:
    """Copy the files of an app from which Flower makes its bundle.

    Parameters
    ----------
    app : pathlib.Path
        Folder of the app's ``pyproject.toml``.
    folder : pathlib.Path
        A folder to make for the copy.

    Returns
    -------
    pathlib.Path
        ``folder``, whose bundle is the same byte for byte; ``app`` itself where ``fab-include`` names anything but whole folders
        at the top.
    """
    settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    included = [_WHOLE_FOLDER.fullmatch(pattern) for pattern in settings.get("fab-include", [])]
    if not included or not all(included) or "fab-exclude" in settings:
        return app
    folder.mkdir()
    for name in ("pyproject.toml", ".gitignore"):
        if (app / name).is_file():
            shutil.copy2(app / name, folder)
    for name in {match[1] for match in included if match}:
        if (app / name).is_dir():
            shutil.copytree(app / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
