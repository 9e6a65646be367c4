"""Attributes by name."""

import pytest
import torch

from pipelines.attributes import attributes_of, numbers_of


def test_numbers_come_in_the_order_of_the_data():
    asked = numbers_of(["height=1.5", "a=b=-2"])  # a column may have such a name
    assert asked == {"height": 1.5, "a=b": -2.0}
    found = attributes_of(("a=b", "height"), asked)
    assert found.dtype == torch.float64
    assert found.tolist() == [-2.0, 1.5]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["age"], "expected NAME=NUMBER, found 'age'"),
        (["age=old"], "expected NAME=NUMBER, found 'age=old'"),
        (["age=1", "age=2"], "expected each once, found 'age' twice"),
    ],
)
def test_anything_else_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        numbers_of(asked)


@pytest.mark.parametrize(
    ("names", "known"), [(("age", "size"), "age, size"), ((), "none, the data have no attributes")]
)
def test_all_are_named_and_no_other(names, known):
    with pytest.raises(ValueError, match=f"expected each once: {known}; found age"):
        attributes_of(names, {"age": 1.0})
