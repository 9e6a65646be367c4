"""The one place that knows devices."""

import re
from pathlib import Path

import pytest
import torch

import ganlib
from ganlib import device as devices

CPU, META = torch.device("cpu"), torch.device("meta")


def test_no_other_file_names_a_device():
    """But for BatchNorm, whose kernels differ, and sums over ranks, which the CPU does in memory."""
    allowed = {
        "device.py": ".",
        "models/_layers.py": r'\.is_cuda|\.type == "cpu"',
        "distributed.py": r'\.type == "cpu"',
        **dict.fromkeys(
            ("data/table.py", "data/_modes.py", "data/_rows.py"), r'\.type == "(boolean|category|date|integer|number)"'
        ),
    }
    root = Path(ganlib.__file__).parent
    for path in root.rglob("*.py"):
        may = re.compile(allowed.get(path.relative_to(root).as_posix(), "$^"))
        for line in path.read_text().splitlines():
            if re.search(r'is_cuda|torch\.cuda|\.cuda\(|"cuda|\.type == "|"mps"', line):
                assert may.search(line), f"{path}: {line.strip()}"


def test_the_cpu_is_chosen_where_there_is_no_gpu_or_none_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.default_device() == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert devices.default_device(0) == devices.default_device(0.0) == CPU
    assert devices.default_device() == devices.default_device(0.5) == torch.device("cuda", 3)


def test_a_cpu_normalises_groups_in_the_usual_layout():
    convolutions, grouped = (
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(4, 4)),
    )
    for device, networks, wanted, expected in [
        (CPU, [convolutions], True, torch.channels_last),
        (CPU, [convolutions, grouped], True, torch.preserve_format),
        (META, [convolutions, grouped], True, torch.channels_last),
        (META, [convolutions], False, torch.preserve_format),
    ]:
        assert devices.memory_format(device, networks, channels_last=wanted) == expected


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="an older torch's names")
@pytest.mark.parametrize("deterministic", [True, False])
def test_settings_hold_inside_and_are_put_back(deterministic):
    def settings():
        precision = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        deterministic = torch.are_deterministic_algorithms_enabled()
        return (
            torch.backends.cudnn.benchmark,
            *precision,
            torch.utils.deterministic.fill_uninitialized_memory,
            deterministic,
        )

    before = settings()
    with devices.configured(CPU, deterministic=deterministic):
        assert settings() == before
    with devices.configured(META, deterministic=deterministic):
        assert settings() == (not deterministic, "ieee", "ieee", False, deterministic)
    assert settings() == before


def test_only_cuda_records():
    assert devices.recorder(CPU) is devices.recorder(META) is None


def test_accelerators_take_more_examples_at_a_time():
    for elements in (28 * 28, 3 * 256 * 256, 3 * 1024 * 1024):
        few, many = (devices.examples_at_a_time(device, elements) for device in (CPU, META))
        assert 1 <= few <= many
