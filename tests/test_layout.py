"""The package's shape: who imports whom, what a bare import costs, and the public names."""

import ast
import importlib
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mri

PACKAGE = Path(mri.__file__).parent
FLOORS = {
    **dict.fromkeys(["_arguments", "_files", "_keras", "_text"], 0),
    "data": 1,
    **dict.fromkeys(["models", "subjects"], 2),
    "evaluation": 3,
    **dict.fromkeys(["training", "gradcam"], 4),
    "plots": 5,
    **dict.fromkeys(["predict", "report"], 6),
    "__main__": 7,
}
"""A room imports only from floors below its own."""

ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
HEAVY = {"tensorflow", "keras"}


def dotted(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


TREES = {dotted(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
FACES = {name for name in TREES if name.endswith("__init__")}
MODULES = sorted(set(TREES) - FACES)


def imported(tree, *, lazily):
    """Dotted names of all imports; with `lazily` False only of those run when the module loads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if (node.module or "").startswith("mri"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if lazily:
                yield from imported(node, lazily=True)
        elif lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, lazily=lazily)


def room(name):
    """The room of a dotted name: 'data' of 'mri.data.decode'."""
    return name.split(".")[1]


def edges(name, *, lazily=True):
    """Modules of the package that a module imports."""
    found = set(imported(TREES[name], lazily=lazily))
    assert not [of for of in found if of.startswith(".")], "absolute imports only"
    return {of for of in found if of in TREES or f"{of}.__init__" in TREES} - {"mri"}


def test_the_rooms_are_those_of_the_map_in_its_order():
    lines = mri.__doc__.partition("==\n")[2].partition("==========")[0].splitlines()
    named = [line.split()[0] for line in lines]
    assert named == sorted(named, key=FLOORS.__getitem__)
    assert sorted(named) == ROOMS
    assert {room(name) for name in MODULES} == set(FLOORS)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_from_floors_below(name):
    here = room(name)
    others = {room(of) for of in edges(name)} - {here}
    assert {of for of in others if FLOORS[of] >= FLOORS[here]} == set()


def test_no_module_imports_itself_by_way_of_others():
    inner = {name: {of for of in edges(name, lazily=False) if of in TREES} for name in MODULES}
    assert len(list(TopologicalSorter(inner).static_order())) == len(MODULES)


def test_the_import_walker_sees_what_it_should():
    source = "import a.b\nfrom mri import c\nif TYPE_CHECKING:\n import d\ndef f():\n import e\n"
    tree = ast.parse(source + "class G:\n import h\ntry:\n from i import j\nfinally:\n pass")
    assert set(imported(tree, lazily=False)) == {"a.b", "mri", "mri.c", "h", "i"}
    assert set(imported(tree, lazily=True)) == {"a.b", "mri", "mri.c", "h", "i", "d", "e"}


@pytest.mark.parametrize(
    ("root", "allowed"),
    [
        ("cv2", {"data", "subjects", "gradcam", "training"}),
        ("matplotlib", {"plots", "predict", "report"}),
        ("sklearn", set(FLOORS) - {"plots"}),
        ("scipy", set(FLOORS)),
        ("PIL", set()),
        ("torch", set()),
    ],
)
def test_a_library_is_used_only_where_it_belongs(root, allowed):
    users = {name for name in MODULES if root in roots(name)}
    assert {room(name) for name in users} <= allowed
    if root == "cv2":
        few = {"mri.gradcam.measures", "mri.training.one_number"}
        assert {name for name in users if room(name) in ("gradcam", "training")} <= few
    if root == "scipy":
        assert {name for name in users if room(name) == "plots"} <= {"mri.plots.explorer"}


def roots(name, *, lazily=True):
    return {of.split(".")[0] for of in imported(TREES[name], lazily=lazily)}


def test_keras_is_imported_by_one_module_and_that_by_those_which_build_or_run_models():
    assert {name for name in TREES if HEAVY & roots(name, lazily=False)} == {"mri._keras"}
    users = {room(name) for name in MODULES if "mri._keras" in edges(name, lazily=False)}
    assert users == {"models", "training", "gradcam"}


@pytest.mark.parametrize("name", sorted(FACES - {"mri.__init__"}))
def test_a_face_is_a_paragraph_and_its_public_names(name):
    doc, *rest = TREES[name].body
    assert isinstance(doc, ast.Expr) and len(rest) == 2
    assert ast.unparse(rest[0]) == "from mri import _face"
    assert ast.unparse(rest[1]).startswith("__getattr__, __dir__, __all__ = _face(__name__, ")
    package = importlib.import_module(name.removesuffix(".__init__"))
    for public in package.__all__:
        thing = getattr(package, public)
        assert thing.__doc__ or not callable(thing), public
        # `mri.models.layers` is Keras' own.
        assert not isinstance(thing, type(mri)) or public == "layers", f"{public} is a module"


def builds(name):
    """Whether a module of the room of models imports Keras when it loads."""
    return room(name) == "models" and "mri._keras" in edges(name, lazily=False)


def test_what_comes_before_the_models_loads_neither_keras_nor_matplotlib():
    light = [name for name in MODULES if FLOORS[room(name)] <= 3]
    light = [name for name in light if name != "mri._keras" and not builds(name)]
    script = f"""
import importlib, json, sys
found = {{}}
for name in {["mri", *(f"mri.{name}" for name in ROOMS), *light]}:
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


@pytest.mark.slow
def test_keras_is_imported_without_announcements_and_errors_are_heard_afterwards():
    done = subprocess.run(
        [sys.executable, "-c", "from mri._keras import keras; import os; os.write(2, b'heard')"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "heard")


def test_public_names_are_few_sorted_and_resolve_every_time():
    assert mri.__all__ == sorted(set(mri.__all__))
    assert len(mri.__all__) <= 26
    assert dir(mri) == mri.__all__
    for name in MODULES:
        if name != "mri.__main__":
            importlib.import_module(name)
    for name in set(mri.__all__) - {"plots"}:
        first = getattr(mri, name)
        assert getattr(mri, name) is first, f"mri.{name} changes once its module is loaded"
        assert not isinstance(first, type(mri)), f"mri.{name} is a module"
        assert getattr(first, "__module__", "mri.").startswith("mri.")
    assert [getattr(mri, name).__name__ for name in ROOMS] == [f"mri.{name}" for name in ROOMS]


@pytest.mark.parametrize("of", ["mri", "mri.data"])
def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones(of):
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'; there are \['CLASS"):
        _ = importlib.import_module(of).nothing


@pytest.mark.parametrize("name", sorted(TREES))
def test_no_assert_no_bare_except_nothing_left_to_do(name):
    nodes = list(ast.walk(TREES[name]))
    assert not [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    assert not [n.lineno for n in nodes if isinstance(n, ast.ExceptHandler) and n.type is None]
    source = (PACKAGE.parent / (name.replace(".", "/") + ".py")).read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source)
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", sorted(TREES))
def test_no_module_of_450_lines_and_no_function_of_60(name):
    source = (PACKAGE.parent / (name.replace(".", "/") + ".py")).read_text()
    assert len(source.splitlines()) <= 455
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            told = ast.get_docstring(node, clean=False) or ""
            assert node.end_lineno - node.lineno + 1 - len(told.splitlines()) <= 60, node.name
            # What is passed by position; options are keywords.
            given = [of.arg for of in node.args.args if of.arg not in ("self", "cls")]
            assert len(given) <= 5, node.name


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name):
    bare = [
        node.name
        for node in TREES[name].body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("name", sorted(set(mri.__all__) - {"plots"}))
def test_what_is_public_shows_an_example(name):
    """Which the doctests run; errors and constants need none."""
    thing = getattr(mri, name)
    if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
        assert "Examples\n" in thing.__doc__
        assert ">>> " in thing.__doc__
