"""What is mistyped on any command line is answered with the right word."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards.common.command_line import Parser
from shards.common.errors import InputError, nearest_path
from shards.reader import open_shard_set
from train.checkpoints import read_position
from train.generate import find_model
from train.values import read_yaml


def test_a_set_s_neighbour_is_suggested_if_it_is_a_set(built_set: Path, tmp_path: Path) -> None:
    shutil.copytree(built_set, tmp_path / "wikipedia-zh")
    (tmp_path / "wikipedia-zg").mkdir()
    for opened in (open_shard_set, shards.open_data):
        with pytest.raises(InputError, match=r"no such shard set; did you mean '.*/wikipedia-zh'\? Or build it"):
            opened(str(tmp_path / "wikipedia-zhh"))
    with pytest.raises(InputError, match="no such shard set; build it with"):
        open_shard_set(tmp_path / "books")
    with pytest.raises(InputError, match="no such shard set; build it with"):
        open_shard_set(tmp_path / "nowhere" / "books")


@pytest.mark.parametrize(
    ("call", "made", "asked"),
    [
        (find_model, "runs/sample/", "runs/sampel"),
        (read_yaml, "configs/sample.yaml", "configs/sampel.yaml"),
        (read_position, "run/checkpoint-500/", "run/checkpoint-50"),
    ],
)
def test_a_run_a_config_and_a_checkpoint_are_suggested(
    tmp_path: Path, call: Callable[[Path], object], made: str, asked: str
) -> None:
    path = tmp_path / made
    path.parent.mkdir(parents=True)
    path.mkdir() if made.endswith("/") else path.write_text("")
    with pytest.raises(InputError, match=f"did you mean '{path}'"):
        call(tmp_path / asked)


def test_a_command_is_suggested() -> None:
    parser = Parser(prog="python -m tool")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name in ("build", "fetch"):
        commands.add_parser(name)
    with pytest.raises(InputError, match=r"COMMAND: expected build, fetch, found 'buidl'; did you mean 'build'\?"):
        parser.parse_args(["buidl"])


def test_names_on_disk_can_t_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "set\x1b[31mname").mkdir()
    assert nearest_path(tmp_path / "set[31mname") == f"; did you mean '{tmp_path}/set\\x1b[31mname'?"
