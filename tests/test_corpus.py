"""How many hostile files there are: as many as tests/README.md says, of every kind."""

import importlib.util
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def module(name):
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), TESTS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def corpus():
    """Names of the cases by which the tests are parametrised."""
    models, claims = module("models/test_hostile"), module("evaluation/test_claims")
    odd = module("test_one_reading").ODD
    return {
        "slices": list(module("data/test_hostile").KINDS),
        "models": [f"{name}{end}" for name, (_, ends, _) in models.ATTACKS.items() for end in ends],
        "cards": [f"{key} {value!r:.60}" for key, of in models.CARDS.items() for value in of],
        "forgeries": [of.__name__ for of in claims.FORGERIES],
        "kept logits": [name for name, _, message in claims.tables() if message],
        "no files": [f"{of.__name__} for {name}" for of in odd for name in ("a model", "a card")],
        "names": module("test_text").NAMES,
    }


def test_the_readme_says_how_many_there_are(corpus):
    said = (TESTS / "README.md").read_text(encoding="utf-8")
    least = int(re.search(r"at least (\d+) hand-made hostile files", said)[1])
    cases = [name for kind, names in corpus.items() if kind != "names" for name in names]
    assert len(cases) >= least >= 120
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("slices", "a_pipe a_folder a_device a_pipe_for_a_volume a_pipe_for_a_slice"),
        ("models", "lambda_layer.keras pickled_code.pth bomb_of_zeros.keras wrong_hash.keras"),
        ("forgeries", "relabelled forged_logits forged_labels cherry_picked negative_rows"),
        ("forgeries", "repeated_rows rows_beyond classes_in_another_order another_division"),
        ("names", "a_link_that_runs a_script mathematics escape_codes a_turned_line a_null"),
    ],
)
def test_every_kind_has_its_members(corpus, kind, expected):
    assert set(expected.split()) <= set(corpus[kind])


@pytest.mark.parametrize(
    "card",
    ["temperature 0", "temperature -1", "temperature nan", f"parameters {10**30}",
     "card_version 99", "builder ['a']", "class_names ['a', 'a', 'a', 'a']", "test_rows [-1]",
     "split {'protocol': 7}", "recipe {'epochs': []}"],
)  # fmt: skip
def test_cards_lie_in_every_way(corpus, card):
    assert card in corpus["cards"]


def test_pipes_and_devices_are_among_those_that_are_no_files(corpus):
    odd = "pipe", "endless_device", "link_to_a_pipe", "dead_link", "sparse"
    assert {f"{of} for {name}" for of in odd for name in ("a model", "a card")} <= set(
        corpus["no files"]
    )
