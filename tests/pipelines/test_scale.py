"""How many workers there are, for clusters that are made up."""

import pytest

from ganlib.config import ConfigError, ResolvedScale, ScaleConfig, parse_params
from pipelines._stage import StageError
from pipelines.scale import check_resources, gpu_slots, resolve_scale, why_fewer


def test_workers_that_the_cluster_can_never_hold_are_refused(params):
    few = ResolvedScale(num_workers=2, cpus_per_worker=2, gpus_per_worker=0, workers_per_trial=1)
    check_resources(few, "num_workers", {"CPU": 4.0})
    check_resources(few, "workers_per_trial", {"CPU": 2.0})
    with pytest.raises(
        StageError, match=r"^scale\.num_workers: 2 workers x 2 CPU asked for, the cluster has 3; lower it "
    ):
        check_resources(few, "num_workers", {"CPU": 3.0})
    with pytest.raises(
        StageError, match=r"1 workers x 0\.5 GPU asked for, the cluster has 0; .* scale\.gpus_per_worker$"
    ):
        check_resources(few.model_copy(update={"gpus_per_worker": 0.5}), "workers_per_trial", {"CPU": 4.0})
    shared = ResolvedScale(num_workers=3, gpus_per_worker=0.6)
    with pytest.raises(StageError, match=r"3 workers x 0\.6 GPU asked for, the cluster has 2"):  # a share is of one GPU
        check_resources(shared, "num_workers", {"CPU": 4.0, "GPU": 2.0})
    check_resources(shared, "num_workers", {"CPU": 4.0, "GPU": 3.0})


DIVISORS_OF_32 = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("cpus", "gpus", "scale", "expected"),
    [
        # no GPU: two workers, or one on a single core
        (8, 0, {}, (2, 0)),
        (1, 0, {}, (1, 0)),
        (3, 0, {"cpus_per_worker": 2}, (1, 0)),
        (0.5, 0, {}, (1, 0)),
        # a worker for each GPU, as far as batch and cores allow
        (8, 1, {}, (1, 1)),
        (8, 3, {}, (2, 1)),
        (16, 8, {}, (8, 1)),
        (5, 8, {}, (4, 1)),
        (512, 64, {}, (32, 1)),
        # shares of a GPU
        (16, 1, {"gpus_per_worker": 0.5}, (2, 0.5)),
        (16, 8, {"gpus_per_worker": 0.5}, (16, 0.5)),
        (16, 8, {"gpus_per_worker": 0.6}, (8, 0.6)),
        (16, 3, {"gpus_per_worker": 1 / 3}, (8, 1 / 3)),
        # one number is set: the other follows
        (16, 8, {"num_workers": 2}, (2, 1)),
        (16, 2, {"num_workers": 3}, (3, 0.5)),
        (16, 1, {"num_workers": 3}, (3, 1 / 3)),
        (16, 0, {"num_workers": 3}, (3, 0)),
        (16, 0, {"num_workers": 0}, (1, 0)),
        (16, 2, {"num_workers": 0}, (1, 1)),
        (16, 8, {"gpus_per_worker": 0}, (2, 0)),
        (16, 0, {"gpus_per_worker": 1}, (1, 1)),
        # both are: they stay, whatever there is
        (1, 0, {"num_workers": 7, "gpus_per_worker": 1}, (7, 1)),
        # a range: the most that is there and divides the batch, or the least, which check_resources then judges
        (16, 0, {"num_workers": (2, 8)}, (8, 0)),
        (5, 0, {"num_workers": (2, 8)}, (4, 0)),
        (16, 3, {"num_workers": (1, 8)}, (2, 1)),
        (1, 0, {"num_workers": (2, 8)}, (2, 0)),
    ],
)
def test_auto_is_what_the_cluster_has(cpus, gpus, scale, expected):
    available = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    found = resolve_scale(ScaleConfig(**scale), available, DIVISORS_OF_32)
    assert (found.num_workers, found.gpus_per_worker) == expected
    if isinstance(scale.get("num_workers"), tuple):
        return
    held = gpu_slots(available, found.gpus_per_worker) if found.gpus_per_worker else found.num_workers
    assert found.num_workers <= held or "GPU" not in available, "check_resources would refuse what is automatic"


def test_workers_without_a_share_of_the_batch_are_named():
    auto, four = ScaleConfig(), {"CPU": 4.0, "GPU": 4.0}
    assert why_fewer(auto, four, DIVISORS_OF_32) == ""
    assert why_fewer(ScaleConfig(num_workers=1), four, DIVISORS_OF_32) == ""
    assert why_fewer(auto, four, [1, 3, 9]) == (
        "scale.num_workers: auto is 3, not 4: the batch does not divide into more"
    )
    assert why_fewer(auto, {"CPU": 3.0, "GPU": 4.0}, DIVISORS_OF_32) == (
        "scale.num_workers: auto is 2, not 4: there are cores for no more"
    )
    assert why_fewer(auto, {"CPU": 3.0}, [1, 3, 9]).endswith("auto is 1, not 2: the batch does not divide into more")


@pytest.mark.parametrize(
    ("value", "message"), [([2], "at least 2|expected auto"), ([3, 2], "expected auto or"), ([0, 2], "expected auto")]
)
def test_bad_ranges_are_named(params, value, message):
    raw = params.model_dump(mode="json")
    raw["scale"]["num_workers"] = value
    with pytest.raises(ConfigError, match=rf"scale\.num_workers.*({message})"):
        parse_params(raw)
    raw["scale"]["num_workers"] = [2, 3]
    assert parse_params(raw).scale.num_workers == (2, 3)
