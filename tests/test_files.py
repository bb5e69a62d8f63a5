"""A file is written whole or not at all, and what a disk does is one line."""

import errno
import json
import os
from pathlib import Path

import pytest

from smallobj_d2.errors import SmallObjError
from smallobj_d2.files import full_disk, remove_leftovers, write_json, writing


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class Stop(Exception):
    pass


def test_what_stood_there_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(Stop), writing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise Stop
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_two_files_of_one_name_may_be_written_at_once(tmp_path):
    path = tmp_path / "a.txt"
    with writing(path) as first, writing(path) as second:
        first.write_text("1")
        second.write_text("2")
    assert path.read_text() == "1"


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "\u91ce" * 83 + ".png"])
def test_a_long_name_keeps_its_suffix(tmp_path, name):
    with writing(tmp_path / "new" / name) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("")
    assert names(tmp_path / "new") == [name]


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(SmallObjError, match=r"a\.txt: the disk is full"),
        writing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["file/a.txt", "file/folder/a.txt", "folder"])
def test_a_path_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SmallObjError, match=rf"Cannot write {tmp_path / name}: .*OUTPUT_DIR"):
        write_json(tmp_path / name, 1)
    assert names(tmp_path) == ["file", "folder"]


def test_an_input_that_is_missing_is_not_an_error_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a.txt"):
        (tmp_path / "input").read_text()


@pytest.mark.parametrize("name", [b"/disk/events.out", "/disk/events.out"])
def test_a_full_disk_is_one_line_wherever_it_happens(tmp_path, name):
    """TensorBoard opens its file by a path in bytes."""
    said = "Cannot write /disk/events.out: the disk is full"
    with pytest.raises(SmallObjError, match=said), full_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    with pytest.raises(SmallObjError, match=f"Cannot write {tmp_path}: "), full_disk(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(FileNotFoundError), full_disk(tmp_path):
        (tmp_path / "input").read_text()


def test_only_our_own_leftovers_are_deleted(tmp_path):
    for name in ("mine.tmp", "a.json.tmp", ".smallobj-12-0-a.json"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.json.tmp", "mine.tmp"]
