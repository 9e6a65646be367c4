"""What the monitor sees in rows of statistics, and what it lets pass."""

import json
import math

import pytest
import torch

from ganlib.health import HELP, HealthConfig, Monitor, diversity, effective_rank, nearest_neighbour_ratio, overfitting

HEALTHY = {
    "loss/generator": 0.8,
    "loss/discriminator": 1.3,
    "gradient/generator": 1.5,
    "gradient/discriminator": 2.0,
    "sign/real": 0.3,
    "sign/fake": -0.4,
    "sign/held_out": 0.2,
    "logit/gap": 0.6,
    "overfitting": 0.1,
    "diversity": 0.95,
    "diversity/features": 0.9,
    "rank/features": 0.9,
    "nearest_neighbour_ratio": 0.8,
    "quality/class_coverage": 1.0,
    "quality/classifier.fd": 5.0,
}
"""one report, every 10 kimg"""

# what is changed in the rows of a sabotaged run; the kind of alarm; figures that the message must name
TROUBLE = {
    "gradient": ({"gradient/generator": 4e3}, "exploding", "gradient/generator 4e+03, 1.5 before"),
    "loss": ({"loss/discriminator": 1e6}, "exploding", "loss/discriminator 1e+06, 1.3 before"),
    "logits": ({"logit/gap": 500.0}, "exploding", "logit/gap 500, 0.6 before"),
    "won": (
        {"sign/real": 1.0, "sign/fake": -0.99, "logit/gap": 30.0},
        "discriminator won",
        "sign/real 1.00 and sign/fake -0.99, logits 30 apart",
    ),
    "lost": ({"logit/gap": -0.2}, "discriminator lost", "logit/gap -0.2"),
    "overfitting": ({"overfitting": 0.93}, "overfitting", "overfitting 0.93"),
    "vanishing": ({"gradient/generator": 1e-3}, "vanishing gradients", "gradient/generator 0.001, 1.5 at first"),
    "diversity": ({"diversity": 0.1}, "collapse", "diversity 0.10"),
    "features": ({"diversity/features": 0.1}, "collapse", "diversity/features 0.10"),
    "rank": ({"rank/features": 0.05}, "collapse", "rank/features 0.05"),
    "nearest_neighbour_ratio": ({"nearest_neighbour_ratio": 0.01}, "collapse", "nearest_neighbour_ratio 0.01"),
    "classes": ({"quality/class_coverage": 0.3}, "collapse", "quality/class_coverage 0.30"),
    "half": ({"diversity": 0.35}, "collapse", "diversity 0.35, 0.95 at best"),
    "worsening": ({"quality/classifier.fd": 16.0}, "worsening", "quality/classifier.fd 16, 5 at best"),
}


def rows(*changes, first=0):
    return [{"kimg": 10.0 * i, **HEALTHY, **change} for i, change in enumerate(changes, start=first + 1)]


def run(monitor, rows):
    return [monitor.update(row) for row in rows]


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_seen_after_patience(name):
    change, kind, figures = TROUBLE[name]
    monitor = Monitor(HealthConfig(patience=3, warmup_kimg=20.0))
    assert run(monitor, rows({}, {}, {}, {})) == [[]] * 4
    assert not monitor.suspects
    assert run(monitor, rows(change, change, first=4)) == [[], []]
    assert monitor.suspects
    ((alarm,),) = run(monitor, rows(change, first=6))
    assert (alarm.kind, alarm.kimg, alarm.since_kimg) == (kind, 70.0, 50.0)
    assert alarm.message.startswith(f"{kind}: {figures}, since 50.0 kimg (3 reports); what usually helps: ")
    assert HELP[kind] in alarm.message
    assert "\n" not in alarm.message
    assert not monitor.suspects
    ((again,),) = run(monitor, rows(change, first=7))  # it stands, and is not new
    assert (again.kimg, again.since_kimg) == (70.0, 50.0)
    assert run(monitor, rows({}, change, change, first=8)) == [[]] * 3  # one good report ends it


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience(patience):
    monitor = Monitor(HealthConfig(patience=patience, warmup_kimg=20.0))
    found = run(monitor, rows(*[{}] * 5, *[{"logit/gap": -1.0}] * 5))
    assert [bool(alarms) for alarms in found] == [False] * (5 + patience - 1) + [True] * (6 - patience)


def test_interrupted_trouble_is_none():
    monitor = Monitor(HealthConfig(patience=2, warmup_kimg=20.0))
    change = {"overfitting": 2.0}
    assert run(monitor, rows({}, {}, change, {}, change, {}, change)) == [[]] * 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_alarm_at_once(bad):
    monitor = Monitor(HealthConfig())
    run(monitor, rows({}, {}))
    ((alarm,),) = run(monitor, rows({"loss/generator": bad}, first=2))
    assert (alarm.kind, alarm.kimg, alarm.since_kimg) == ("diverged", 30.0, 30.0)
    assert "loss/generator not finite at 30.0 kimg" in alarm.message
    assert run(monitor, rows({}, {}, {}, first=3)) == [[]] * 3  # it left no trace in what is usual


def test_several_at_once():
    monitor = Monitor(HealthConfig(patience=2, warmup_kimg=20.0))
    run(monitor, rows({}, {}, {}))
    *_, alarms = run(
        monitor, rows(*[{"overfitting": 1.2, "diversity": 0.1, "nearest_neighbour_ratio": 0.0}] * 2, first=3)
    )
    assert [alarm.kind for alarm in alarms] == ["overfitting", "collapse"]
    assert "diversity 0.10" in alarms[1].message
    assert "nearest_neighbour_ratio 0.00" in alarms[1].message


def test_a_healthy_warm_up_raises_nothing():
    """Variety comes from nothing, the discriminator is far ahead at first, and figures are noisy."""
    rng = torch.Generator().manual_seed(0)
    monitor = Monitor(HealthConfig(patience=2, warmup_kimg=20.0))
    for i in range(1, 61):
        grown = 1 - math.exp(-i / 6)
        noise = (torch.randn(6, generator=rng) * 0.1).tolist()
        ahead = math.exp(-i / 8)
        row = {
            "kimg": 2.0 * i,
            "loss/generator": 0.8 + 3 * ahead + noise[0],
            "gradient/generator": (1 + 10 * ahead) * math.exp(noise[1]),
            "sign/real": min(1.0, 0.2 + ahead),
            "sign/fake": max(-1.0, -0.3 - ahead),
            "sign/held_out": min(1.0, 0.1 + ahead + noise[2]),
            "logit/gap": 0.3 + 10 * ahead,
            "overfitting": 2 * noise[3],
            "diversity": grown,
            "nearest_neighbour_ratio": 0.8 * grown * math.exp(noise[4]),
            "rank/features": 0.9 * grown,
            "quality/class_coverage": round(grown, 1),
            "quality/classifier.fd": 5 + 1000 * ahead**3 * math.exp(noise[5]),
        }
        assert monitor.update(row) == [], row


@pytest.mark.parametrize("name", TROUBLE)
def test_only_divergence_is_called_during_the_warm_up(name):
    change, kind, _ = TROUBLE[name]
    found = run(Monitor(HealthConfig(patience=2, warmup_kimg=100.0)), rows({}, {}, *[change] * 8))
    assert any(found) == (kind == "exploding")


def test_low_variety_is_none_during_the_warm_up_nor_while_it_rises():
    low = [{"diversity": 0.1}] * 5
    assert run(Monitor(HealthConfig(patience=2, warmup_kimg=60.0)), rows(*low)) == [[]] * 5
    assert any(run(Monitor(HealthConfig(patience=2, warmup_kimg=0.0)), rows(*low)))
    rising = [{"nearest_neighbour_ratio": 0.01 * 1.4**i} for i in range(7)]  # 0.01 to 0.08
    assert run(Monitor(HealthConfig(patience=3, warmup_kimg=20.0)), rows(*rising)) == [[]] * 7


def test_what_noise_was_like_is_no_measure():
    """An untrained generator's pictures can be as varied as the data, and as near as it will be for long."""
    course = rows(
        *[{"rank/features": 1.3, "quality/classifier.fd": 100.0}] * 2,
        *[{"rank/features": 0.4, "quality/fd": 900.0}] * 4,
    )
    assert run(Monitor(HealthConfig(patience=1, warmup_kimg=25.0)), course) == [[]] * 6
    assert any(run(Monitor(HealthConfig(patience=1, warmup_kimg=0.0)), course))


@pytest.mark.parametrize("name", TROUBLE)
def test_one_report_is_enough_for_what_is_sure(name):
    change, kind, _ = TROUBLE[name]
    found = run(Monitor(HealthConfig(patience=1, warmup_kimg=20.0, strict_only=True)), rows({}, {}, {}, change))
    sure = kind in ("exploding", "discriminator lost", "collapse") and name != "classes"
    assert [[alarm.kind for alarm in alarms] for alarms in found] == [[], [], [], [kind] if sure else []]


def test_a_slow_start_is_not_taken_for_what_is_sure():
    slow = {"diversity": 0.16, "diversity/features": 0.2, "rank/features": 0.17, "nearest_neighbour_ratio": 0.06}
    slow |= {"quality/class_coverage": 0.1, "sign/real": 1.0, "sign/fake": -1.0, "overfitting": 0.6}
    assert any(run(Monitor(HealthConfig(patience=1, warmup_kimg=0.0)), rows(*[slow] * 4)))
    assert not any(run(Monitor(HealthConfig(patience=1, warmup_kimg=0.0, strict_only=True)), rows(*[slow] * 4)))


def test_overfitting_by_signs_where_there_is_nothing_better():
    without = {name: amount for name, amount in HEALTHY.items() if name != "overfitting"}

    def look(**signs):
        monitor = Monitor(HealthConfig(patience=1, warmup_kimg=0.0))
        return monitor.update({"kimg": 10.0, **without, **{f"sign/{name}": amount for name, amount in signs.items()}})

    (alarm,) = look(real=0.9, held_out=-0.6, fake=-0.8)
    assert alarm.kind == "overfitting"
    assert "sign/real 0.90, sign/held_out -0.60, sign/fake -0.80" in alarm.message
    assert look(real=0.9, held_out=0.5, fake=-0.8) == []
    assert look(real=0.2, held_out=-0.1, fake=-0.1) == []  # it hardly tells fakes at all


def test_rows_may_lack_anything():
    monitor = Monitor(HealthConfig(patience=1, warmup_kimg=0.0))
    assert run(monitor, [{"kimg": float(i)} for i in range(50)]) == [[]] * 50
    assert not monitor.suspects


@pytest.mark.parametrize("cut", range(9))
def test_a_resumed_monitor_raises_the_same_alarms(cut):
    trouble = {"diversity": 0.2, "gradient/generator": 1e4, "quality/classifier.fd": 100.0}
    course = rows({}, {"diversity": 0.7}, {}, {}, trouble, trouble, trouble, trouble)
    whole = Monitor(HealthConfig(patience=3, warmup_kimg=20.0))
    expected = run(whole, course)
    assert any(expected)
    again = Monitor(HealthConfig(patience=3, warmup_kimg=20.0))
    kept = json.loads(json.dumps(course[:cut]))  # a checkpoint has the rows, and shows them to a new monitor
    assert run(again, kept) + run(again, course[cut:]) == expected
    assert again.suspects == whole.suspects


def test_memory_is_bounded():
    monitor = Monitor(HealthConfig())
    run(monitor, rows(*[{}] * 100))
    size = len(repr(vars(monitor)))
    run(monitor, rows(*[{}] * 100, first=100))
    assert len(repr(vars(monitor))) == size


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_effective_rank_of_k_equal_directions_is_k(k):
    corners = torch.cat([torch.eye(k, 8), -torch.eye(k, 8)]) * 3.0
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    assert effective_rank(corners) == pytest.approx(k)
    assert effective_rank(corners @ rotation + 7.0) == pytest.approx(k, rel=1e-4)


def test_effective_rank_weighs_directions_by_singular_values():
    points = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # singular values 3 : 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(points) == pytest.approx(math.exp(entropy))


def test_effective_rank_of_equal_rows_is_nothing():
    row = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    assert effective_rank(row.repeat(9, 1)) == 0.0
    noise = 1e-7 * torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert effective_rank(row.repeat(9, 1) + noise) == 0.0  # what rounding leaves


def test_spacing_sees_copies_that_diversity_does_not():
    real = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    few = real[:8].repeat(8, 1, 1, 1)
    assert nearest_neighbour_ratio(real, real) == pytest.approx(1.0)
    assert nearest_neighbour_ratio(real / 2, real) == pytest.approx(0.5)
    assert nearest_neighbour_ratio(few + 5, real) == pytest.approx(0.0, abs=1e-6)
    assert diversity(few, real) > 0.8
    assert nearest_neighbour_ratio(real, real.repeat(2, 1, 1, 1)) == pytest.approx(
        1.0
    )  # the data's own copies are left out


def test_copies_are_no_fault_where_most_of_the_data_are_copies():
    """Rows of few categories: of as many drawn from their distribution nearly all are equal, too."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    real, fake = (corners[torch.randint(16, (500,), generator=torch.Generator().manual_seed(s))] for s in (0, 1))
    assert nearest_neighbour_ratio(fake, real) == 1.0
    one = corners[:1].expand(500, -1)
    assert nearest_neighbour_ratio(one, real) == 1.0
    assert diversity(one, real) == pytest.approx(0.0, abs=1e-6)
    real = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    few_copies = torch.cat([real, real[:20]])
    assert nearest_neighbour_ratio(real[:1].expand(80, -1), few_copies) == pytest.approx(0.0, abs=1e-6)


def test_overfitting_is_the_share_of_the_way_to_the_fakes():
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([-1.0, -1.0, -1.0])
    assert overfitting(real, torch.tensor([3.0]), fake) == 0.0
    assert overfitting(real, torch.tensor([[0.0, 2.0]]), fake) == pytest.approx(0.5)
    assert overfitting(real, torch.tensor([-1.0]), fake) == pytest.approx(1.0)
    assert overfitting(fake, real, real) == 0.0  # no gap to overfit in
