import pytest

from ganlib.schedules import Schedule, value


def test_a_number_is_constant():
    assert value(0.3, 0.0) == value(0.3, 1e6) == 0.3


@pytest.mark.parametrize(
    ("kind", "kimg", "expected"),
    [
        ("cosine", 0, 1.0),
        ("cosine", 10, 1.0),
        ("cosine", 20, 0.8535534),  # (1 + cos(π/4)) / 2
        ("cosine", 30, 0.5),
        ("cosine", 50, 0.0),
        ("cosine", 99, 0.0),
        ("linear", 20, 0.75),
    ],
)
def test_schedule(kind, kimg, expected):
    schedule = Schedule(kind=kind, start=1.0, end=0.0, from_kimg=10, to_kimg=50)
    assert value(schedule, kimg) == pytest.approx(expected)
