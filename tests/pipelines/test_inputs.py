"""What workers read on nodes that do not see the project."""

import filecmp
import tempfile

import pytest

from pipelines import inputs
from pipelines._stage import StageError
from pipelines.inputs import fetch, publish
from pipelines.storage import Storage


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "reference" / "features").mkdir(parents=True)
    (tmp_path / "reference" / "reference.json").write_text("{}")
    (tmp_path / "reference" / "features" / "x").write_bytes(b"123")
    return tmp_path / "reference"


@pytest.fixture(params=["folder", "object_store"])
def storage(request, tmp_path):
    address = str(tmp_path / "runs") if request.param == "folder" else request.getfixturevalue("object_store")
    return Storage(address) / tmp_path.name


@pytest.fixture
def nodes(monkeypatch):
    """`nodes(reads=…, key=…)`: a cluster of two nodes, of which the second answers so."""

    def make(*, reads=True, key=None):
        def everywhere(function, *args):
            here = function(*args)
            return {"a (1)": here, "b (2)": {inputs._reads: reads, inputs._key: here if key is None else key}[function]}

        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
        monkeypatch.setattr(inputs, "_everywhere", everywhere)

    return make


def same(a, b):
    compared = filecmp.dircmp(a, b)
    return not (compared.left_only or compared.right_only or compared.diff_files) and all(
        same(a / name, b / name) for name in compared.common_dirs
    )


def test_one_node_reads_where_the_data_lie(prepared, reference, storage, monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert publish([prepared, reference], storage) is None
    assert storage.folders() == []


def test_nodes_that_share_the_project_do_too(prepared, reference, storage, nodes):
    nodes()
    assert publish([prepared, reference], storage) is None
    assert (storage.folders(), storage.files()) == ([], [])


def test_others_get_the_data_through_the_storage(prepared, reference, storage, nodes, capsys):
    nodes(key="")
    published = publish([prepared, reference], storage)
    assert f"the nodes get the data through {published}" in capsys.readouterr().out
    for _ in range(2):  # the second time they are there
        here = fetch(published)
        assert same(prepared, here / prepared.name)
        assert same(reference, here / reference.name)
    assert publish([prepared, reference], storage) == published
    assert capsys.readouterr().out == ""
    (reference / "reference.json").write_text("other")
    assert publish([prepared, reference], storage) != published


def test_a_folder_of_one_machine_is_refused_at_once(prepared, reference, storage, nodes):
    nodes(reads=False)
    message = rf"^scale\.storage: {storage} is not the same on b \(2\); with more than one node .* s3://bucket/folder$"
    with pytest.raises(StageError, match=message):
        publish([prepared, reference], storage)
    assert storage.files() == []
