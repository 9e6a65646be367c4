"""What a person reads while a model trains."""

import csv

import pytest

from ganlib.config import TrainConfig
from pipelines.tracking import StoreError
from pipelines.train import _Progress, _write_curves


class Run:
    """A run that is logged to no store."""

    def log_stats(self, rows):
        pass


@pytest.fixture
def progress():
    health = {"policy": "rollback", "patience": 2, "warmup_kimg": 0, "lr_factor": 0.5, "max_rollbacks": 3}
    return _Progress(Run(), TrainConfig.model_validate({"kimg": 10, "health": health}))


def row(kimg, gap=1.0, rollbacks=0):
    figures = {"kimg": float(kimg), "examples_per_second": 100.0, "logit/gap": gap}
    return {**figures, "health/rollbacks": rollbacks} if rollbacks else figures


def test_an_alarm_is_said_once_each_time(progress, capsys):
    for one in (row(1), row(2, -1), row(3, -1), row(4, -1), row(5), row(6, -1), row(7, -1)):
        progress(one)
    said = [line for line in capsys.readouterr().out.splitlines() if "kimg (2 reports)" in line]
    assert [line.split(":")[0] for line in said] == ["discriminator lost"] * 2
    assert not any("discriminator lost: discriminator lost" in line for line in said)


def test_the_time_left_is_never_below_zero(progress, capsys):
    for one in (row(4), row(10.05)):
        progress(one)
    assert [line.split("left ")[1] for line in capsys.readouterr().out.splitlines()] == ["1:00", "0:00"]


def test_a_rollback_is_told_and_what_led_to_it_forgotten(progress, capsys):
    for one in (row(1), row(2, -1), row(3, -1), row(2, -1, 1), row(3, 1, 1)):
        progress(one)
    out = capsys.readouterr().out
    assert out.count("discriminator lost") == 1
    assert "rolled back to 1.0 kimg, rollback 1 of 3; learning rates at 0.5 of what they were" in out
    for one in (row(4, -1, 1), row(4, -1, 1), row(5, 1, 1)):  # a worker was lost, and its last report comes again
        progress(one)
    assert len(capsys.readouterr().out.splitlines()) == 3, "a line a report, and nothing else"


def test_a_store_error_that_looks_like_markup_stops_nothing(progress, capsys, monkeypatch):
    def lost(*_):
        raise StoreError("HTTP 502: [/html] [bold]")

    monkeypatch.setattr(progress.run, "log_stats", lost)
    for one in (row(1), row(2), row(3)):
        progress(one)
    out = capsys.readouterr().out
    assert out.count("tracking: HTTP 502: [/html] [bold]; training goes on") == 1
    assert out.count("examples/s") == 3


def test_a_figure_is_named_with_its_feature_space(progress, capsys):
    progress(row(1) | {"quality/classifier.fd": 7.9, "quality/label_accuracy": 0.5})
    assert "classifier.fd 7.9  labels right 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("judged", [True, False])
def test_the_curve_of_quality_is_the_last_column_of_its_table(tmp_path, judged):
    also = {"quality/columns.fd": 3.5} if judged else {}
    _write_curves([row(1), row(2) | also], tmp_path)
    with (tmp_path / "quality.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["kimg", *also]
    assert table[1:] == ([["1.0", ""], ["2.0", "3.5"]] if judged else [["1.0"], ["2.0"]])
    with (tmp_path / "curves.csv").open() as file:
        assert {"kimg", "logit/gap", *also} == set(next(csv.reader(file)))
