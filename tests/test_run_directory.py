"""The files of a run directory, and how a new run takes the place of an old one."""

import os
import shutil

import pytest
import torch

from equicat import InputError
from equicat.run_directory import (
    append_metrics,
    check_free,
    column,
    data_config,
    new_run,
    read_checkpoint,
    read_config,
    read_metrics,
    write_config,
    write_metrics,
)


def content(path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def old(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "model.safetensors", "checkpoints/last.ckpt", "report.html", "notes.txt"):
        (tmp_path / "run" / name).write_text(f"old {name}")
    return tmp_path / "run"


# ---- a new run -----------------------------------------------------------------------------------------------------


def test_a_run_is_replaced_when_the_new_one_is_published(old):
    before = content(old)
    with new_run(old, overwrite=True) as directory:
        (directory.path / "config.yaml").write_text("new")
        directory.keep()
        assert content(old) == before, "kept for a resumption is not yet better than what is there"
        beside = directory.path
        directory.publish()
        assert directory.path == old
        assert content(old) == {"config.yaml": "new"}
        (beside / "log").write_text("by a logger that knows the first path")
    assert content(old) == {"config.yaml": "new", "log": "by a logger that knows the first path"}
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def start_and_fail(run, failure, keep=False):
    with new_run(run, overwrite=True) as directory:
        (directory.path / "config.yaml").write_text("new")
        if keep:
            directory.keep()
        raise failure


@pytest.mark.parametrize("failure", [InputError("loss is nan"), KeyboardInterrupt(), SystemExit(1)])
def test_a_run_outlives_a_start_that_fails(old, failure):
    before = content(old)
    with pytest.raises(type(failure)):
        start_and_fail(old, failure)
    assert content(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def test_what_a_killed_start_left_is_cleared_away(old):
    (old.parent / ".run.new").mkdir()
    (old.parent / ".run.new" / "half").touch()
    with new_run(old, overwrite=True) as directory:
        assert content(directory.path) == {}
    shutil.rmtree(old)
    (old.parent / ".run.new").symlink_to("nowhere")
    with new_run(old, overwrite=True) as directory:
        directory.publish()
        assert directory.path == old


def test_a_run_behind_a_link_is_replaced_where_it_lies(old, tmp_path):
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "link"
    link.symlink_to(old)
    with new_run(link, overwrite=True) as directory:
        directory.publish()
    assert link.is_symlink()
    assert content(old) == {}


def test_a_fresh_run_that_fails_leaves_nothing_unless_it_is_kept(tmp_path):
    for kept in (False, True):
        with pytest.raises(InputError):
            start_and_fail(tmp_path / "a" / "run", InputError("loss is nan"), keep=kept)
        assert (tmp_path / "a" / "run").exists() == kept


def test_two_trainings_do_not_begin_in_one_directory(tmp_path, monkeypatch):
    with new_run(tmp_path / "run", overwrite=False):
        monkeypatch.setattr("pathlib.Path.is_dir", lambda path: False)  # the other looked a moment before
        with pytest.raises(InputError, match="another training writes there"), new_run(tmp_path / "run", False):
            pass
        monkeypatch.undo()
        assert (tmp_path / "run").is_dir()


def test_only_runs_are_overwritten(old, tmp_path):
    check_free(old, overwrite=True)
    check_free(tmp_path / "fresh", overwrite=False)
    with pytest.raises(InputError, match=r"exists; choose another run\.out"):
        check_free(old, overwrite=False)
    with pytest.raises(InputError, match="holds no run"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_free(old / "notes.txt", overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"), new_run(tmp_path / "run", overwrite=False):
        pass
    tmp_path.chmod(0o700)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_configuration_is_read_as_it_was_written(tmp_path):
    values = {"task": "s2ef", "data": {"train": ("a", "b"), "n_val": 3}, "run": {"lr": 1e-30}}
    write_config(tmp_path, values)
    assert read_config(tmp_path) == {"task": "s2ef", "data": {"train": ["a", "b"], "n_val": 3}, "run": {"lr": 1e-30}}
    assert data_config(tmp_path).train == ("a", "b")


@pytest.mark.parametrize("text", ["a: [1", "just text", "data: 3", "data: {unknown: 1}", "run: {}", b"\xff\xfe"])
def test_a_damaged_configuration_is_one_line(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config.yaml: not a configuration of equicat") as error:
        data_config(tmp_path)
    assert "\n" not in str(error.value)


def test_metrics_grow_row_by_row_and_are_read_up_to_a_step(tmp_path):
    assert read_metrics(tmp_path, 10) == []
    write_metrics(tmp_path, [], ["epoch", "step", "val_loss"])
    append_metrics(tmp_path, {"epoch": "0", "step": "4", "extra": "1"})
    append_metrics(tmp_path, {"epoch": "1", "step": "8", "val_loss": "0.5"})
    rows = read_metrics(tmp_path, 8)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert column(rows, "val_loss") == [0.5]
    assert [row["epoch"] for row in read_metrics(tmp_path, 7)] == ["0"]
    write_metrics(tmp_path, rows, ["epoch", "step", "new"])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step,new,val_loss\n0,4,,\n1,8,,0.5\n"


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


@pytest.mark.parametrize("thing", [Evil(), os.getcwd], ids=["call", "function"])
def test_a_checkpoint_that_asks_for_code_is_refused_by_name(tmp_path, thing, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callbacks": thing}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last.ckpt: asks for \w+\.\w+; a checkpoint of equicat holds nothing but"):
        read_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "was_run").exists()


def test_a_checkpoint_that_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no checkpoint of equicat, but Tensor"):
        read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "b.ckpt")
