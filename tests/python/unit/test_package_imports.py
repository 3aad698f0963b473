"""Imports between modules, those in functions too: each is of something that is there, and none goes in a circle."""

import ast
import importlib
from pathlib import Path

import introspect

PACKAGE = Path(introspect.__file__).parent


def module_name(file):
    return ".".join(("introspect", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "__main__.py"}


def absolute(name, node):
    """The module that a file's ``from ... import`` names."""
    package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(name):
    """(line, module, name in it or "") of every import of the package in a file, as absolute names."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = absolute(name, node)
            if module.split(".")[0] == "introspect":
                yield from ((node.lineno, module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name, "") for a in node.names if a.name.split(".")[0] == "introspect")


def needed(name):
    """The files that one names in its imports, those in functions and those for type checkers alone among them."""
    found = {f"{module}.{inside}" if f"{module}.{inside}" in FILES else module for _, module, inside in imports(name)}
    return (found & set(FILES)) - {"introspect"}  # the package itself, which loads what is asked of it


def circle(graph):
    """The nodes of a circle of {node: nodes it leads to}, or None."""
    left = {node: set(to) for node, to in graph.items()}
    while ends := [node for node, to in left.items() if not to & left.keys()]:
        for node in ends:
            del left[node]
    if not left:
        return None
    path = [min(left)]
    while (following := min(left[path[-1]] & left.keys())) not in path:
        path.append(following)
    return path[path.index(following) :]


def exists(module, name):
    try:
        return name in ("", "*") or hasattr(importlib.import_module(module), name) or f"{module}.{name}" in FILES
    except ModuleNotFoundError:
        return False


def test_what_is_imported_is_there():
    lost = [
        f"{FILES[of]}:{line}: {module} {name}"
        for of in FILES
        for line, module, name in imports(of)
        if not exists(module, name)
    ]
    assert len(FILES) > 80
    assert lost == []


# A Result's methods call functions of these modules, which take a Result.
OF_RESULT = {
    *("introspect.experiments.detections", "introspect.experiments.readings", "introspect.report.verdicts"),
    "introspect.studies.from_results",
}
# A Study's methods call functions of these modules, which take a Study.
OF_STUDY = {"introspect.studies.from_results", "introspect.report.study_page"}
# A dictionary's methods load, save and train by functions of these modules, which make dictionaries.
OF_DICTIONARY = {
    *("introspect.sae.files", "introspect.sae.training", "introspect.sae.steering"),
    "introspect.sae.cross_layer_trainer",
}


def test_no_module_needs_itself_by_way_of_others():
    graph = {name: needed(name) for name in FILES}
    graph["introspect.experiments.results"] -= OF_RESULT
    graph["introspect.studies.study"] -= OF_STUDY
    graph["introspect.steering.steer"] -= {"introspect.studies.dose"}  # which measures with steered models
    for name in ("dictionary", "cross_layer_transcoder"):
        graph[f"introspect.sae.{name}"] -= OF_DICTIONARY
    assert "introspect.hooks.manager" in graph["introspect.steering.steer"]
    assert circle(graph) is None


def test_imports_in_functions_and_for_type_checkers_count():
    assert "introspect.progress" in needed("introspect.cli.common")  # in a function
    assert "introspect.experiments.results" in needed("introspect.cli.experiment")  # under TYPE_CHECKING


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}) is None


def test_an_import_of_nothing_is_found():
    assert exists("introspect.experiments.store", "difference")
    assert not exists("introspect.store", "difference")
    assert not exists("introspect.experiments.store", "no_such_name")
