"""Which of the many cases of a topology and a method run in `make test`."""

import pytest

FEW = {"functional", "nested", "subclassed"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All topologies by one method and all methods on three topologies; the rest is slow."""
    for item in items:
        of = getattr(item, "callspec", None)
        if of is None or not {"topology", "method"} <= of.params.keys():
            continue
        if of.params["method"] != "hirescam" and not FEW & set(of.id.split("-")):
            item.add_marker(pytest.mark.slow)
