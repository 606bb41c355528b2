"""A location means one folder, whoever makes a path of it."""

import os
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.location import absolute_uri, is_local, local_path
from shards.store import LocalStore, open_store


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("uri", ["~/x", "~", "x", "x/", "/x", "/", "a~b", "file:///x", "file:///a%20b/~"])
def test_workers_open_the_folder_that_the_command_opens(uri: str) -> None:
    here, there = open_store(uri), open_store(absolute_uri(uri))
    assert isinstance(here, LocalStore)
    assert isinstance(there, LocalStore)
    assert there.root == here.root


def test_home_is_the_users_and_relative_places_are_here(home: Path) -> None:
    assert absolute_uri("~/x") == str(home / "home" / "x")
    assert absolute_uri("../x") == str(home / "x")
    assert local_path("file:///a%20b") == Path("/a b")


@pytest.mark.parametrize("uri", ["", "s3://b/c", "s3:/b", "file:///a%20b", "gs://b"])
def test_what_is_no_path_is_left_to_the_store(uri: str) -> None:
    assert absolute_uri(uri) == uri


def test_a_link_in_a_circle_is_left_to_the_store(home: Path) -> None:
    os.symlink("circle", "circle")
    assert absolute_uri("circle") == str(home / "here" / "circle")


def test_a_user_without_a_home_is_named() -> None:
    with pytest.raises(InputError, match=r"~nobody-here/x: no such home on this machine"):
        absolute_uri("~nobody-here/x")


@pytest.mark.parametrize(
    ("uri", "local"), [("~/x", True), ("x", True), ("file:///x", True), ("s3://b/x", False)]
)
def test_folders_are_told_from_buckets(uri: str, local: bool) -> None:
    assert is_local(uri) == local
