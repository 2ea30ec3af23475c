"""All people in one table: networks, numbers and the glass box, whoever was asked how."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mri import plots
from mri.__main__ import main
from mri.data.decode import DataError
from mri.data.phantom import Phantoms, make_phantoms
from mri.evaluation.logits import LogitsTable
from mri.evaluation.significance import leading_group
from mri.training.crossval import SHUFFLED, CrossValidation, read_crossval
from mri.training.people import PROBES, judge_people
from mri.training.people_table import (
    BEGIN,
    END,
    against_one_number,
    best_number,
    by_ventricles,
    figures_of,
    over_divisions,
    people_page,
    write_tables,
)

NAMES = ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")
LOGITS = [f"logit_{name}" for name in NAMES]
LABELS = np.tile([2, 3, 2, 0, 2, 3, 2, 3, 0, 1], 6)
STRENGTHS = {"good": 2.0, "poor": 0.0, "gray share": 1.0, "all fluid": 0.6, "ventricle volume": 0.8}


def frame_of(name, strength, rng, *, division=0, slices=1, people=60):
    """Rows of a model whose logits know the label as well as `strength` says."""
    subject = np.repeat(np.arange(people), slices)
    about = {"model": name, "division": division, "fold": subject % 5, "seed": 0, "part": "test"}
    found = pd.DataFrame(about | {"row": np.arange(len(subject)), "subject": subject})
    found["label"] = LABELS[subject]
    logits = strength * np.eye(4)[LABELS[subject]] + rng.normal(size=(len(subject), 4))
    return found.join(pd.DataFrame(logits, columns=LOGITS))


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    frames = [
        frame_of(name, strength, rng, division=division, slices=2 if name == "good" else 1)
        for name, strength in STRENGTHS.items()
        for division in ((0,) if name == "poor" else (0, 1))
    ]
    control = frame_of(f"good{SHUFFLED}", 0, rng)
    control["label"] = np.roll(control["label"], 3)
    frames += [control, frame_of("half", 1, rng, people=30)]
    return CrossValidation(pd.concat(frames, ignore_index=True), NAMES, "made-up slices")


def test_a_person_has_the_mean_logits_of_their_slices(found):
    of = found.people("good")
    rows = found.frame.query("model == 'good' and division == 0")
    expected = [rows[rows["subject"] == who][LOGITS].mean() for who in range(60)]
    np.testing.assert_allclose(of[LOGITS], expected)
    assert of["label"].tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match=r"test logits of the model in this division.*division=1"):
        found.people("poor", 1)


def test_divisions_are_never_averaged(found):
    first = found.evaluate("gray share").metrics["subject"]["accuracy"].value
    assert first != found.evaluate("gray share", division=1).metrics["subject"]["accuracy"].value
    rows = found.frame.query("model == 'gray share' and division == 0")
    expected = (rows[LOGITS].to_numpy().argmax(1) == rows["label"]).mean()
    assert first == pytest.approx(expected)


def test_a_model_of_people_has_no_figures_per_slice(found):
    assert set(found.evaluate("gray share").metrics) == {"subject"}
    assert set(found.evaluate("good").metrics) == {"slice", "subject"}
    assert found.table(unit="slice").loc["gray share"].isna().all()


def test_the_ranking_is_by_all_people_and_leaves_out_who_judged_fewer(found, closed):
    ranking = found.ranking()
    table = ranking.table.set_index("model")
    assert set(ranking.evaluations) == set(STRENGTHS)
    assert table.loc["half", "note"] == "has not judged everybody"
    values = [of.metrics["subject"]["balanced_accuracy_3"].value for of in
              ranking.evaluations.values()]  # fmt: skip
    assert values == sorted(values, reverse=True)
    assert ranking.leading() == leading_group(ranking.p_values["subject"], "good")
    assert "poor" not in ranking.leading()
    assert "first of 5" in ranking.conclusion()
    axes = plots.leaderboard(ranking)
    assert "per subject" in axes.get_xlabel()
    assert [t.get_text() for t in axes.get_yticklabels()] == list(ranking.evaluations)
    assert "per subject" in ranking._repr_html_()
    with pytest.raises(ValueError, match="by must be one of"):
        found.ranking("ece")


def test_figures_are_those_of_scikit_learn_and_of_evaluate(found):
    of = found.sample("gray share")
    figures = figures_of(*of[:2], NAMES)
    whole = found.evaluate("gray share").metrics["subject"]
    for key in ("accuracy", "balanced_accuracy", "balanced_accuracy_3", "demented_auc"):
        assert figures[key] == pytest.approx(whole[key].value)
    ill = np.logaddexp.reduce(of.logits[:, [0, 1, 3]], axis=1) - of.logits[:, 2]
    rows = of.labels != 3
    assert figures["mild_auc"] == pytest.approx(roc_auc_score(of.labels[rows] != 2, ill[rows]))
    rows = np.isin(of.labels, (2, 3))
    assert figures["very_mild_auc"] == pytest.approx(roc_auc_score(of.labels[rows] == 3, ill[rows]))


def test_the_lead_over_one_number_is_a_paired_difference(found):
    table = against_one_number(found)
    rival = best_number(found)
    figures = over_divisions(found)
    assert rival == figures.loc[list(STRENGTHS)[2:], "demented_auc mean"].idxmax()
    for key in ("demented_auc", "balanced_accuracy_3"):
        other = table[f"{key}_rival"].dropna().unique().tolist()
        expected = figures.loc["good", f"{key} mean"] - figures.loc[other[0], f"{key} mean"]
        assert table.loc["good", key] == pytest.approx(expected)
        assert table.loc["good", f"{key}_low"] < expected < table.loc["good", f"{key}_high"]
        assert (table[f"{key}_p"].dropna() >= 0).all()
    # 'poor' was judged in one division, and is compared in that one.
    one = [figures_of(*found.sample(name)[:2], NAMES)["demented_auc"] for name in ("poor", rival)]
    assert table.loc["poor", "demented_auc"] == pytest.approx(one[0] - one[1])


def test_people_are_divided_at_the_median_of_their_ventricles(found):
    strata = by_ventricles(found)
    sizes = [len(of["good"].sample("subject").labels) for of in strata.values()]
    assert sizes == [30, 30]
    odds = {}
    for name, models in strata.items():
        logits = models["ventricle volume"].sample("subject").logits
        odds[name] = np.logaddexp.reduce(logits[:, [0, 1, 3]], axis=1) - logits[:, 2]
    assert odds["small ventricles"].max() <= odds["large ventricles"].min()


@pytest.mark.slow
def test_the_page_and_the_place_in_the_readme(found, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nLAST\n{END}\nafter\n")
    assert [path.name for path in write_tables(found, tmp_path)] == ["people.md", "README.md"]
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}") and text.endswith(f"{END}\nafter\n")
    assert "LAST" not in text and "| `good` * |" in text and "| gray share" in text
    assert (tmp_path / "people.md").read_text() == people_page(found)
    assert f"good{SHUFFLED}" in people_page(found)
    rng = np.random.default_rng(0)
    by_chance = [roc_auc_score(rng.permutation(LABELS != 2), np.arange(60)) for _ in range(2000)]
    said = re.search(r"deviation of (\d\.\d+) or", people_page(found).replace("\n", " "))[1]
    assert float(said) == pytest.approx(np.std(by_chance), rel=0.05)
    write_tables(found, tmp_path)
    assert readme.read_text() == text
    readme.write_text(BEGIN)
    with pytest.raises(DataError, match="put it after the table"):
        write_tables(found, tmp_path)


def test_files_are_read_as_one(found, tmp_path):
    parts = {}
    for name in ("good", "gray share", "ventricle volume"):
        parts[name] = tmp_path / f"{name}.parquet"
        replace(found, frame=found.frame[found.frame["model"] == name]).save(parts[name])
    both = read_crossval(parts["good"], parts["gray share"])
    assert both.models == ["good", "gray share"]
    with pytest.raises(DataError, match=r"\['good'\] stand in two"):
        read_crossval(parts["good"], shutil.copy(parts["good"], tmp_path / "b.parquet"))
    other = found.frame[found.frame["model"] == "gray share"].assign(label=2)
    replace(found, frame=other).save(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet: other people, or other diagnoses"):
        read_crossval(parts["gray share"], tmp_path / "other.parquet")


@pytest.fixture(scope="module")
def many() -> Phantoms:
    return make_phantoms(20, 32, size=64, seed=2)


def test_twenty_phantoms_end_to_end_and_resumed(many, tmp_path, monkeypatch):
    scans, groups = many.scans, many.subjects
    kept = (*PROBES, "glass box, registered", "gray share", "ventricle volume", "all fluid")
    options = {"models": kept, "divisions": 1, "folds": 4}
    output = tmp_path / "people.parquet"
    found = judge_people(scans, groups, output, **options)
    assert found.models == [m + end for m in kept for end in ("", SHUFFLED)]
    assert output.stat().st_size < 100_000
    for name in ("_judge", "cross_validate_probes"):
        monkeypatch.setattr(f"mri.training.people.{name}", lambda *_, **__: pytest.fail("again"))
    judge_people(scans, groups, output, **options)
    again = read_crossval(output)
    truth = many.labels[::32]
    for model in found.ranked():
        of = again.people(model)
        np.testing.assert_array_equal(of["label"], truth)
        np.testing.assert_allclose(of[LOGITS], found.people(model)[LOGITS], rtol=1e-5, atol=1e-5)
    assert figures_of(*again.sample("ventricle volume")[:2], NAMES)["demented_auc"] > 0.7
    assert main(["folds", "--table", "--output", str(tmp_path / "crossval.parquet")]) == 0
    assert "20 people (synthetic phantom slices)" in (tmp_path / "people.md").read_text()


def test_a_control_that_is_not_kept_is_computed_again(many, tmp_path):
    output, options = tmp_path / "people.parquet", {"divisions": 1, "folds": 2}
    options["models"] = ("gray share", "all fluid")
    whole = judge_people(many.scans, many.subjects, output, **options).frame
    table = LogitsTable.read(output)
    real = ~table.frame["model"].str.endswith(SHUFFLED)
    replace(table, frame=table.frame[real].reset_index(drop=True)).save(output)
    again = judge_people(many.scans, many.subjects, output, **options).frame
    pd.testing.assert_frame_equal(again, whole, atol=1e-5)


def test_phantoms_do_not_replace_real_people(many, found, tmp_path):
    replace(found, origin="MRI slices").save(tmp_path / "people.parquet")
    with pytest.raises(ValueError, match="real slices are not overwritten"):
        judge_people(many.scans, many.subjects, tmp_path / "people.parquet")


def test_answers_about_other_people_are_not_taken_up(found, tmp_path):
    from mri.training.people import _done

    found.save(tmp_path / "people.parquet")
    about = {"key": "of other people", "origin": found.origin}
    assert _done(tmp_path / "people.parquet", about) == {}
    assert _done(tmp_path / "none.parquet", about) == {}


def test_a_fold_does_not_see_whom_it_tests(many):
    """Answers of a fold stay the same when its own people's diagnoses change."""
    from mri.training.people import _judge, _prepared

    people = _prepared(many.scans, many.subjects)
    first = _judge("gray share", people, 0, 5)
    test = next(people.tested(0, 5))
    changed = people.labels.copy()
    changed[test] = np.roll(changed[test], 1)
    second = _judge("gray share", replace(people, labels=changed), 0, 5)
    mine = first["subject"].isin(np.unique(many.subjects)[test]) & (first["model"] == "gray share")
    np.testing.assert_array_equal(first[mine][LOGITS], second[mine][LOGITS])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("oracle",)}, "models must be some of"),
        ({"models": ()}, "models must be some of"),
        ({"divisions": 0}, "divisions must be at least 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(many, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        judge_people(many.scans, many.subjects, tmp_path / "people.parquet", **options)


def test_tables_of_nothing_are_refused(tmp_path, capsys):
    assert main(["folds", "--table", "--output", str(tmp_path / "none.parquet")]) == 1
    assert "no logits kept; run: python -m mri people" in capsys.readouterr().err
    assert main(["folds"]) == 1
    assert "Name the networks to train, or give --table" in capsys.readouterr().err


def test_files_of_other_classes_origins_or_kinds_are_not_put_together(found, tmp_path):
    found.save(tmp_path / "a.parquet")
    replace(found, origin="MRI slices").save(tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b\.parquet: its origin are MRI slices, those of .*a\.par"
    ):
        read_crossval(tmp_path / "a.parquet", tmp_path / "b.parquet")
    replace(found, frame=found.frame.drop(columns="fold")).save(tmp_path / "c")
    with pytest.raises(DataError, match=r"c: no logits of a cross-validation; it lacks \['fold'\]"):
        read_crossval(tmp_path / "c")


def test_an_ensemble_is_of_slices_that_all_its_models_judged(found):
    with pytest.raises(ValueError, match=r"all of them have judged\. Received: .* others=60"):
        found.pooled(["good", "poor"])  # The one has two slices of each person, the other one.
    assert len(found.pooled(["poor", "gray share"])) == 60


def test_as_many_other_people_are_not_the_same_people(found):
    """Rows of fold 0 are left out of two models, and those of fold 1 of the third."""
    frame = found.frame[found.frame["division"] == 0]

    def part(name, fold):
        return frame[(frame["model"] == name) & (frame["fold"] != fold)]

    parts = [part("gray share", 0), part("all fluid", 0), part("poor", 1)]
    other = replace(found, frame=pd.concat(parts))
    assert other.ranked() == ["gray share", "all fluid"]
    assert "poor" not in against_one_number(other).index
    with pytest.raises(ValueError, match="another model than one number"):
        against_one_number(replace(found, frame=part("gray share", 0)))
