"""The defaults as TOML: what is written is what is read."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ff_flower.config import RunSpec, from_run_config
from ff_flower.errors import ConfigError
from sims.defaults import check_keys, flatten, render_config, toml_line, write_config

AROUND = """[project]
name = "x"

[tool.flwr.app.config]
old = 1

[tool.flwr.app.config.deep]
older = 2

[tool.after]
kept = true
"""


def test_rendered_tables_read_back_as_the_spec():
    """Reading the rendered tables gives the flat spec again, whatever the values."""
    spec = from_run_config({"seed": 7, "module.edm.learning-rate": 1e-7, "out": 'C:\\a "b" é'})
    assert flatten(tomllib.loads(render_config(spec))["tool"]["flwr"]["app"]["config"]) == spec.flat()


@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")), st.booleans(), st.integers(0, 2**63 - 1)
    )
)
def test_a_line_reads_back_as_its_value(value):
    """A scalar survives the way through TOML with its type."""
    read = flatten(tomllib.loads(toml_line("a.b-c", value)))
    assert read == {"a.b-c": value}
    assert type(read["a.b-c"]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_reads_back_to_the_last_bit(value):
    """A finite float survives the way through TOML exactly."""
    assert tomllib.loads(toml_line("a", value)) == {"a": value}


def test_only_the_table_is_written(tmp_path):
    """Writing replaces the table with its subtables, leaves all else as it was, and finds nothing to do the second time."""
    path = tmp_path / "pyproject.toml"
    path.write_text(AROUND)
    assert write_config(path)
    written = path.read_text()
    assert (
        written == AROUND[: AROUND.index("[tool.flwr")] + render_config(RunSpec()) + "\n" + AROUND[AROUND.index("[tool.after") :]
    )
    assert not write_config(path)
    assert path.read_text() == written


def test_the_table_may_stand_last(tmp_path):
    """A table at the end of the file is replaced to the file's end."""
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "x"\n\n[tool.flwr.app.config]\n')
    assert write_config(path)
    assert path.read_text() == '[project]\nname = "x"\n\n' + render_config(RunSpec())


def test_a_file_without_the_table_is_refused(tmp_path):
    """A pyproject.toml without the table is left alone, and the error names file and remedy."""
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\n")
    with pytest.raises(ConfigError, match=r"must have a table \[tool\.flwr\.app\.config\]; add"):
        write_config(path)
    assert path.read_text() == "[project]\n"


def test_keys_that_flower_would_refuse_are_named(tmp_path):
    """Keys that the app's table lacks are named with the file and the remedy; those that it has pass."""
    (tmp_path / "pyproject.toml").write_text(AROUND)
    check_keys(tmp_path, ["old", "deep.older"])
    with pytest.raises(ConfigError, match=r"^b, deep: must stand in \[tool.flwr.app.config\] of .*pyproject.toml; add"):
        check_keys(tmp_path, ["old", "deep", "b"])


@pytest.mark.parametrize("content", [None, "[x"])
def test_a_folder_that_is_no_app_is_refused(tmp_path, content):
    """A folder without a pyproject.toml that can be read is no app."""
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"must be an app's pyproject\.toml"):
        check_keys(tmp_path, [])
