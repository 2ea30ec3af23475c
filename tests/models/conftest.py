"""The process for strangers' models, for the tests of this room."""

from pathlib import Path

import pytest

import child_functions as functions
from mri.models.child import Child


@pytest.fixture(scope="module")
def child():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(functions.__file__).parent))
        one = Child(loads="json")
        yield one
        one.end()
