"""The folder that ``flwr run`` is pointed at: Flower looks at every file below it, for seconds where a virtual environment is."""

import re
import shutil
import tomllib
from pathlib import Path

_WHOLE_FOLDER = re.compile(r"/?([\w.-]+)/\*\*")


def copy_of_app(app: Path, home: Path) -> Path:
    """Copy the files of an app from which Flower makes its bundle.

    Parameters
    ----------
    app : pathlib.Path
        Folder of the app's ``pyproject.toml``.
    home : pathlib.Path
        Where the copy is made, as ``app``; an earlier one is replaced.

    Returns
    -------
    pathlib.Path
        The copy, whose bundle is the same byte for byte; ``app`` itself where ``fab-include`` names anything but whole folders
        at the top.
    """
    settings = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    folders = [_WHOLE_FOLDER.fullmatch(pattern) for pattern in settings.get("fab-include", [])]
    if not folders or not all(folders) or "fab-exclude" in settings:
        return app
    copy = home / "app"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("pyproject.toml", ".gitignore"):
        if (app / name).is_file():
            shutil.copy2(app / name, copy)
    for folder in folders:
        if folder and (app / folder[1]).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(app / folder[1], copy / folder[1], symlinks=True, ignore=ignored, dirs_exist_ok=True)
    return copy
