"""The package's shape: who imports whom, what a bare import costs, and the public names."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mri

PACKAGE = Path(mri.__file__).parent
ORDER = [
    *("arguments", "files", "decode", "hub", "parquet", "data", "ready", "phantom", "slices"),
    *("pose", "identity", "heights", "coverage", "linking", "subjects", "leakage", "evaluation"),
    "significance",
    *("backend", "models", "cards", "callbacks", "training", "crossval", "geometry", "gradcam"),
    *("map_measures", "faithfulness", "predictions", "comparison", "zoo"),
    *("plots", "ranking_plots", "map_plots", "explorer", "predict", "report"),
]
DRAWING = {"plots", "ranking_plots", "map_plots"}
HEAVY = {"tensorflow", "keras"}
TREES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}


def imported(tree, *, lazily):
    """Dotted names of all imports; with `lazily` False only of those run when the module loads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "mri":
                yield from (f"mri.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if lazily:
                yield from imported(node, lazily=True)
        elif lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, lazily=lazily)


def roots(name, *, lazily):
    return {dotted.split(".")[0] for dotted in imported(TREES[name], lazily=lazily)}


def test_the_order_names_every_module():
    assert sorted(TREES) == sorted([*ORDER, "__init__"])


def test_the_docstring_of_the_package_maps_the_modules_in_order():
    lines = mri.__doc__.partition("==\n")[2].partition("==========")[0].splitlines()
    assert [line.split()[0] for line in lines] == [name for name in ORDER if name != "backend"]


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_from_those_before_them(name):
    found = set(imported(TREES[name], lazily=True))
    assert not [dotted for dotted in found if dotted.startswith(".")], "absolute imports only"
    # A function of the same name as its module is found by either reading of `from mri import`.
    edges = {dotted.split(".")[1] for dotted in found if dotted.startswith("mri.")}
    assert edges <= set(ORDER[: ORDER.index(name)])


def test_the_import_walker_sees_what_it_should():
    source = "import a.b\nfrom mri import c\nif TYPE_CHECKING:\n import d\ndef f():\n import e\n"
    tree = ast.parse(source + "class G:\n import h\ntry:\n from i import j\nfinally:\n pass")
    assert set(imported(tree, lazily=False)) == {"a.b", "mri", "mri.c", "h", "i"}
    assert set(imported(tree, lazily=True)) == {"a.b", "mri", "mri.c", "h", "i", "d", "e"}


@pytest.mark.parametrize(
    ("root", "allowed"),
    [
        ("cv2", {"decode", "phantom", "pose", "identity", "heights", "map_measures"}),
        ("matplotlib", {*DRAWING, "explorer", "predict", "report"}),
        ("sklearn", set(ORDER) - DRAWING),
        ("scipy", set(ORDER) - DRAWING),
        ("PIL", set()),
        ("torch", set()),
    ],
)
def test_a_library_is_used_only_where_it_belongs(root, allowed):
    assert {name for name in TREES if root in roots(name, lazily=True)} <= allowed


def test_keras_is_imported_by_one_module_and_that_by_those_which_build_or_run_models():
    assert {name for name in TREES if HEAVY & roots(name, lazily=False)} == {"backend"}
    users = {name for name in TREES if "mri.backend" in imported(TREES[name], lazily=False)}
    assert users <= {"models", "callbacks", "training", "geometry", "gradcam", "comparison"}


def test_plots_takes_from_the_package_nothing_that_runs_a_model():
    edges = {d.split(".")[1] for d in imported(TREES["plots"], lazily=False) if "mri." in d}
    assert edges.isdisjoint(ORDER[ORDER.index("models") :])


def test_imports_before_the_models_load_neither_keras_nor_matplotlib():
    light = ORDER[: ORDER.index("backend")]
    script = f"""
import importlib, json, sys
found = {{}}
for name in {["mri", *(f"mri.{name}" for name in light)]}:
    importlib.import_module(name)
    found[name] = sorted(set({sorted(HEAVY | {"matplotlib"})}) & set(sys.modules))
    if name == "mri":
        found["pulled in by mri"] = [name for name in sys.modules if name.startswith("mri.")]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {name: found for name, found in json.loads(done.stdout).items() if found} == {}


def test_keras_is_imported_without_announcements_and_errors_are_heard_afterwards():
    done = subprocess.run(
        [sys.executable, "-c", "from mri.backend import keras; import os; os.write(2, b'heard')"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "heard")


def test_public_names_are_sorted_and_resolve_every_time():
    assert mri.__all__ == sorted(set(mri.__all__))
    assert dir(mri) == mri.__all__
    for name in mri.__all__:
        first = getattr(mri, name)
        assert getattr(mri, name) is first, f"mri.{name} changes once its module is loaded"
        home = first.__module__ if hasattr(first, "__module__") else "mri.parquet"
        if name in DRAWING:
            assert first is importlib.import_module(f"mri.{name}")
        else:
            assert getattr(importlib.import_module(home), name) is first
            assert home.startswith("mri.")


def test_public_names_survive_the_import_of_all_modules():
    for name in ORDER:
        importlib.import_module(f"mri.{name}")
    for name in set(mri.__all__) - DRAWING:
        assert not isinstance(getattr(mri, name), type(mri)), f"mri.{name} is a module"


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'; there are \['CLASS"):
        _ = mri.nothing


@pytest.mark.parametrize("name", [*ORDER, "__init__"])
def test_no_assert_no_bare_except_nothing_left_to_do(name):
    nodes = list(ast.walk(TREES[name]))
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    assert not [n.lineno for n in nodes if isinstance(n, ast.ExceptHandler) and n.type is None]
    source = (PACKAGE / f"{name}.py").read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source)
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", ORDER)
def test_everything_public_has_a_docstring(name):
    bare = [
        node.name
        for node in TREES[name].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("name", [name for name in mri.__all__ if name not in mri._MODULES])
def test_what_is_public_shows_an_example(name):
    """Which the doctests run; errors and constants need none."""
    thing = getattr(mri, name)
    if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
        assert "Examples\n" in thing.__doc__
        assert ">>> " in thing.__doc__
