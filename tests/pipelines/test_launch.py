"""What the door to training says, and mends, without starting Ray."""

import json
import socket

import pytest

from pipelines._stage import StageError, whole_folder
from pipelines.launch import _knock, _mend, cause


def test_an_address_where_nothing_listens_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        _knock(address)
        _knock(f"ray://{address}")
    with pytest.raises(StageError, match=f"no Ray cluster at {address}"):
        _knock(address)
    _knock("auto")


def test_the_cause_is_the_workers_own_exception():
    from ray.train.v2.api.exceptions import WorkerGroupError

    lonely, full = RuntimeError("gloo: connection closed by peer"), OSError(28, "No space left on device", "/x")
    assert cause(WorkerGroupError("...", {0: lonely, 1: full})) == (
        "worker 1: OSError: [Errno 28] No space left on device: '/x'"
    )
    assert cause(WorkerGroupError("...", {0: lonely})).startswith("worker 0: RuntimeError: gloo")
    assert cause(RuntimeError("a traceback\nthe last line\n")) == "the last line"


def test_a_run_whose_book_was_cut_short_is_begun_anew(tmp_path, capsys):
    book = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    book.parent.mkdir()
    book.write_text(json.dumps({"checkpoint_results": []}))
    _mend(book.parent)
    assert book.exists()
    book.write_text('{"checkpoint_res')
    _mend(book.parent)
    assert not book.parent.exists()
    assert str(book) in capsys.readouterr().out


def test_a_folder_is_whole_or_absent(tmp_path):
    final = tmp_path / "out"
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(final) as folder:  # noqa: PT012
            (folder / "half").touch()
            raise error
        assert list(tmp_path.iterdir()) == []
    with whole_folder(final) as folder:
        (folder / "whole").touch()
    assert [p.name for p in final.iterdir()] == ["whole"]
