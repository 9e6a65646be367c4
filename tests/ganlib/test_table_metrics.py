"""What tables are judged by, against values made by hand, SciPy's and those of copies, shuffles and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from scipy.stats.contingency import association
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from ganlib import registry
from ganlib.config import EvaluateConfig
from ganlib.data import table
from ganlib.data._spec import Spec
from ganlib.evaluate import compare, evaluate
from ganlib.metrics.table import _columns, quality, shapes, trends, tstr
from ganlib.reference import Reference, Space
from ganlib.spaces.table import columns, rows

N = 600


def frame(n=N, seed=0):
    """Rows whose `income` follows from `age` and `city`, as a source delivers them."""
    rng = np.random.default_rng(seed)
    age, city = rng.integers(18, 80, n), rng.choice(["Rome", "Oslo", "Lima"], n, p=[0.6, 0.3, 0.1])
    income = 100 * age + 2000 * (city == "Oslo") + rng.normal(0, 300, n)
    children = np.minimum(rng.poisson(1, n), 3)
    return [
        {
            "age": int(a),
            "city": str(c),
            "children": None if i % 9 == 0 else int(k),
            "income": round(float(x), 2),
            "rich": "yes" if x > 5000 else "no",
        }
        for i, (a, c, k, x) in enumerate(zip(age, city, children, income, strict=True))
    ]


CFG = table.settle(
    table.scan(table.Config(max_modes=4), frame()),
    [
        {
            "sample": np.stack(
                [table.encode(table.scan(table.Config(max_modes=4), frame()), row)["sample"] for row in frame()]
            )
        }
    ],
)


def coded(found):
    return torch.from_numpy(np.stack([table.encode(CFG, row)["sample"] for row in found]))


REAL, OTHER = coded(frame()), coded(frame(seed=1))


def sides(real, fake):
    return CFG, {"rows": real}, {"rows": fake}


def shuffled(codes, seed=0):
    """Each column in an order of its own."""
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([column[torch.randperm(len(codes), generator=rng)] for column in codes.T], 1)


def toy(*types):
    return table.Config(columns=tuple(table.Column(name=f"c{i}", type=of) for i, of in enumerate(types)))


# -- shapes, trends, quality --------------------------------------------------------------------------------------


def test_equal_tables_score_1_and_shuffled_columns_lose_their_trends_alone():
    for metric in (shapes, trends, quality):
        assert metric.compute(*sides(REAL, REAL)) == 1.0
    assert shapes.compute(*sides(REAL, shuffled(REAL))) == 1.0
    assert trends.compute(*sides(REAL, shuffled(REAL))) < trends.compute(*sides(REAL, OTHER)) - 0.2
    value = quality.compute(*sides(REAL, shuffled(REAL)))
    assert value == (1.0 + trends.compute(*sides(REAL, shuffled(REAL)))) / 2


def test_shapes_by_hand():
    nan = torch.nan
    real = torch.tensor([[1.0, 0], [2, 0], [3, 1], [4, 1]], dtype=torch.float64)
    fake = torch.tensor([[3.0, 0], [4, 1], [5, 2], [6, 2]], dtype=torch.float64)
    cfg = toy("number", "category")
    found = shapes.compute(cfg, {"rows": real}, {"rows": fake})
    assert found == pytest.approx(((1 - 0.5) + (1 - 0.5)) / 2)  # half lie below 3; (.5, .5, 0) against (.25, .25, .5)
    missing = torch.tensor([[nan, 0], [2, nan], [3, 1], [4, 1]], dtype=torch.float64)
    found = shapes.compute(cfg, {"rows": real}, {"rows": missing})
    assert found == pytest.approx(1 - 0.25)  # one in four is missing in each column


def test_the_distance_of_numbers_is_kolmogorovs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 70).astype(float), rng.normal(4, 2, 45).round(1)
    expected = 1 - ks_2samp(a, b).statistic
    found = shapes.compute(toy("number"), *({"rows": torch.from_numpy(of)[:, None]} for of in (a, b)))
    assert found == pytest.approx(expected)


def test_trends_of_numbers_are_of_their_correlation_and_only_where_there_is_one():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    real, opposite, flat = (torch.stack([x, y], 1) for y in (x, -x, torch.zeros_like(x)))
    cfg = toy("number", "integer")
    assert trends.compute(cfg, {"rows": real}, {"rows": opposite}) == pytest.approx(0.0)
    assert trends.compute(cfg, {"rows": real}, {"rows": flat}) == pytest.approx(0.5)  # a constant has no correlation
    parabola = torch.stack([x, x.square()], 1)
    assert trends.compute(cfg, {"rows": parabola}, {"rows": real}) == 1.0, "reals that are uncorrelated count nothing"
    shape = shapes.compute(cfg, {"rows": parabola}, {"rows": real})
    assert quality.compute(cfg, {"rows": parabola}, {"rows": real}) == shape < 1


def test_trends_of_categories_by_hand():
    cfg = toy("category", "boolean")
    real = torch.tensor([[0, 0], [1, 1]] * 10, dtype=torch.float64)
    fake = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]] * 10, dtype=torch.float64)
    assert trends.compute(cfg, {"rows": real}, {"rows": fake}) == pytest.approx(0.5)


def test_bins_are_tenths_of_the_range_with_missing_values_apart():
    values = np.array([0.0, 0.99, 1.0, 5.5, 10.0, np.nan])
    assert _columns.bins(values).tolist() == [1, 1, 2, 6, 11, 0]
    assert _columns.bins(np.full(3, np.nan)).tolist() == [0, 0, 0]


def test_association_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, 200)
    b = np.where(rng.random(200) < 0.4, a, rng.integers(0, 6, 200))
    expected = association(np.histogram2d(a, b, (4, 6))[0].astype(int), method="cramer")
    assert _columns.association(a, b) == pytest.approx(expected)


# -- train on synthetic, test on real -----------------------------------------------------------------------------


def test_tstr_is_the_area_under_the_curve_of_a_classifier_trained_on_the_fakes():
    X, y = OTHER[:, :-1].numpy(), OTHER[:, -1].numpy()
    model = HistGradientBoostingClassifier(
        categorical_features=[False, True, False, False], early_stopping=False, random_state=0
    ).fit(X, y)
    expected = roc_auc_score(REAL[:, -1].numpy(), model.predict_proba(REAL[:, :-1].numpy())[:, 1])
    assert tstr.compute(*sides(REAL, OTHER)) == pytest.approx(expected)
    assert expected > 0.95
    assert abs(tstr.compute(*sides(REAL, shuffled(OTHER))) - 0.5) < 0.15


def test_tstr_of_a_number_is_r2_and_the_target_is_named():
    cfg = CFG.model_copy(update={"target": "income"})
    assert tstr.compute(cfg, {"rows": REAL}, {"rows": OTHER}) > 0.9
    assert tstr.compute(cfg, {"rows": REAL}, {"rows": shuffled(OTHER)}) < 0.1
    three = CFG.model_copy(update={"target": "city"})
    assert 0.8 < tstr.compute(three, {"rows": REAL}, {"rows": OTHER}) < 1
    lost = OTHER[OTHER[:, 1] != 2]
    assert tstr.compute(three, {"rows": REAL}, {"rows": lost}) < tstr.compute(three, {"rows": REAL}, {"rows": OTHER})


def test_tstr_of_what_cannot_be_predicted_is_chance():
    same = OTHER.clone()
    same[:, -1] = 0
    for real, fake in ((REAL, same), (same, REAL)):
        assert tstr.compute(*sides(real, fake)) == 0.5
    income = CFG.model_copy(update={"target": "income"})
    nothing = OTHER.clone()
    nothing[:, 3] = torch.nan
    assert tstr.compute(income, {"rows": REAL}, {"rows": nothing}) == 0.0
    assert tstr.compute(toy("category"), {"rows": REAL[:, -1:]}, {"rows": REAL[:, -1:]}) == 0.5


def test_tstr_does_without_columns_that_are_missing_in_all_rows_to_train_on():
    income = CFG.model_copy(update={"target": "income"})
    for cfg in (CFG, income):
        empty, names = OTHER.clone(), [column.name for column in cfg.columns]
        empty[:, names.index("children")] = torch.nan
        assert tstr.compute(cfg, {"rows": REAL}, {"rows": empty}) > 0.9
        others = [name not in (cfg.target or "rich") for name in names]
        empty[:, others] = torch.nan
        assert tstr.compute(cfg, {"rows": REAL}, {"rows": empty}) == (0.0 if cfg.target else 0.5)


def test_tstr_of_many_classes_lumps_the_rare_ones():
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(0, 40, (400,), generator=rng).double()
    table_ = torch.stack([label, label], 1)
    assert tstr.compute(toy("number", "category"), {"rows": table_}, {"rows": table_}) > 0.95


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="no column 'wealth'"):
        table.scan(table.Config(target="wealth"), frame())
    with pytest.raises(ValueError, match="left out by `exclude`"):
        table.Config(target="age", exclude=("age",))


# -- spaces, evaluation -------------------------------------------------------------------------------------------

SPEC = Spec(CFG, "table", (), {"train": N, "test": N}, "f" * 64)


def decoded(codes):
    return table.decode(CFG, "sample", codes)


@pytest.fixture(scope="module")
def reference():
    """600 training and 400 test rows."""
    train, test = decoded(REAL), decoded(OTHER[:400])
    extractors = {name: module.load(module.Config(), SPEC) for name, module in (("columns", columns), ("rows", rows))}
    spaces = {
        name: Space(name, extract, extract(train), extract(test), extract.column)
        for name, extract in extractors.items()
    }
    return Reference(SPEC, spaces, {}, None, {})


def test_the_space_rows_is_what_users_get(reference):
    torch.testing.assert_close(reference.spaces["rows"].train, REAL, equal_nan=True)
    noisy = decoded(REAL) + 0.01 * torch.randn(decoded(REAL).shape, generator=torch.Generator().manual_seed(0))
    found = reference.spaces["rows"].extract(noisy)
    assert set(found[:, 1].tolist()) == {0.0, 1.0, 2.0}


def test_every_column_counts_about_as_much_and_outliers_no_more(reference):
    extract = reference.spaces["columns"].extract
    features = extract(decoded(REAL))
    assert features.dtype == torch.float64
    assert features.isfinite().all()
    width = [1 + 1, len(CFG.columns[1].categories) + 1, 1 + 1, 1 + 1, 3]
    assert features.shape == (N, sum(width))
    variances = [part.var(0).sum() for part in features.split(width, 1)]
    assert all(0.3 < float(variance) < 1.5 for variance in variances)
    far = REAL.clone()
    far[0, 3] = 1e9
    assert extract(decoded(far)).abs().max() < 4


def test_categories_are_equally_far_apart_and_many_nearly():
    few = columns._vectors(7)
    apart = torch.pdist(few)
    torch.testing.assert_close(apart, torch.full_like(apart, 2**0.5))
    assert columns._vectors(300).shape == (300, 32)
    assert 0.5 < torch.pdist(columns._vectors(300)).min() < torch.pdist(columns._vectors(300)).max() < 2


def test_rows_of_the_training_set_are_found_and_unseen_ones_are_not(reference):
    cfg = EvaluateConfig(num_samples=300, resamples=5)
    unseen = decoded(coded(frame(seed=2))[:300])
    copies = evaluate({"sample": decoded(REAL[:300])}, reference, cfg, seed=0)["columns"]
    others = evaluate({"sample": unseen}, reference, cfg, seed=0)["columns"]
    half = evaluate({"sample": torch.cat([decoded(REAL[:150]), unseen[:150]])}, reference, cfg, seed=0)["columns"]
    assert [of["copied"]["value"] for of in (copies, half, others)] == pytest.approx([1.0, 0.5, 0.0], abs=0.02)
    assert copies["dcr"]["value"] > 0.95
    assert half["dcr"]["low"] < 0.75 < half["dcr"]["high"]
    for figure in (others["dcr"]["value"], others["dcr"]["floor"], copies["dcr"]["floor"]):
        assert figure == pytest.approx(0.5, abs=0.1)


def test_tables_are_evaluated_and_compared(reference):
    cfg = EvaluateConfig(num_samples=300, resamples=4)
    good, bad = ({"sample": decoded(of[:300])} for of in (coded(frame(seed=2)), shuffled(OTHER)))
    found = evaluate(good, reference, cfg, seed=0)
    assert {"fd", "kid", "copied", "coverage", "dcr"} <= found["columns"].keys()
    assert set(found["rows"]) == {"shapes", "trends", "quality", "tstr"}
    assert all(np.isfinite(list(figures.values())).all() for of in found.values() for figures in of.values())
    worse = evaluate(bad, reference, cfg, seed=0)
    for section, metric in (("columns", "fd"), ("columns", "kid"), ("rows", "quality"), ("rows", "tstr")):
        sign = 1 if registry.load("metrics", metric, "table").DIRECTION == "lower" else -1
        assert sign * (worse[section][metric]["value"] - found[section][metric]["value"]) > 0
    against = compare(good, bad, reference, "rows.quality", cfg, seed=0)
    assert against.low > 0
    assert against.challenger == found["rows"]["quality"]["value"]


@pytest.mark.parametrize("name", ["shapes", "trends", "quality", "tstr"])
def test_five_rows_have_every_metric(name):
    metric = registry.load("metrics", name, "table")
    assert (metric.__doc__ or "").split("\n")[0].endswith(".")
    assert np.isfinite(metric.compute(*sides(REAL[:5], OTHER[:5])))


def test_quality_while_training_is_of_the_first_space(reference):
    found = reference.quality(reference.space.extract(decoded(OTHER[:300])))
    bad = reference.quality(reference.space.extract(decoded(shuffled(OTHER)[:300])))
    assert reference.space.name == "columns"
    assert found["quality/columns.fd"] < bad["quality/columns.fd"]


# -- the picture --------------------------------------------------------------------------------------------------


def test_the_page_has_a_panel_a_column_and_shows_what_differs():
    same = table.compare(CFG, OTHER[:200].numpy(), REAL[:200].numpy())
    assert (same.mode, same.width > 800) == ("RGB", True)
    again = table.compare(CFG, OTHER[:200].numpy(), REAL[:200].numpy())
    assert same.tobytes() == again.tobytes()
    assert same.tobytes() != table.compare(CFG, shuffled(OTHER)[:200].numpy(), REAL[:200].numpy()).tobytes()


def test_odd_tables_are_drawn():
    dates = table.Config(columns=(table.Column(name="$when", type="date"),))
    nothing = np.full((3, 1), np.nan)
    days = np.arange(20.0)[:, None] * 86400
    for made, real in ((nothing, nothing), (days, nothing), (nothing, days), (days[:1], days)):
        assert table.compare(dates, made, real).size[1] > 50
    wide = toy(*["number", "category"] * 30)
    wide = wide.model_copy(
        update={
            "columns": tuple(
                of.model_copy(update={"categories": ("a",) * 15 if of.type == "category" else ()})
                for of in wide.columns
            )
        }
    )
    codes = np.random.default_rng(0).integers(0, 15, (50, 60)).astype(float)
    assert table.compare(wide, codes, codes[::-1]).size[1] > 1000
