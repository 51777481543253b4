"""As a user who may not write: where writing is needed one clear line and exit status 2, elsewhere it works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipeline import qwen2
from shards.common.errors import InputError
from shards.common.files import user_cache
from tests.conftest import REPOSITORY, SAMPLE, assert_one_error_line
from tests.hub_server import Hub
from tests.shards.sets import TEXTS, build_set

Run = Callable[..., subprocess.CompletedProcess[str]]
# To root all is permitted, but for these.
WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing may be made."""
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o555)
    yield directory
    directory.chmod(0o755)


@pytest.fixture
def run(closed: Path) -> Run:
    """`python -m …` by a user whose home is closed."""
    prefix = [] if os.geteuid() else WITHOUT_PRIVILEGE
    if prefix and (shutil.which("setpriv") is None or subprocess.run([*prefix, "true"]).returncode):
        pytest.skip("to root all is permitted, and setpriv can't take that away here")
    assert subprocess.run([*prefix, "touch", closed / "file"], capture_output=True).returncode

    def start(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        home = {"HOME": str(closed), "XDG_CACHE_HOME": str(closed / "cache"), "PYTHONPATH": str(REPOSITORY)}
        command = [*prefix, sys.executable, "-m", *map(str, arguments)]
        env = {**os.environ, **home, **variables}
        return subprocess.run(command, cwd=closed, env=env, capture_output=True, text=True, timeout=120)

    return start


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A shard set that nobody may change."""
    out = build_set(tmp_path_factory.mktemp("permissions"), tokenizer_dir, TEXTS, block_tokens=128)
    for path in [*out.rglob("*"), out]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return out


@pytest.mark.parametrize(
    "command",
    [
        "pipeline build {sample} --tokenizer {tokenizer} --out {closed}/set",
        "pipeline tokenizer {sample} --vocab-size 300 --out {closed}/tokenizer",
        "pipeline fetch wikipedia-zh --out {closed}/a",
        "shards report {set} --out {closed}/report.html",
        "shards export {set} --to parquet --out {closed}/export",
        "shards subset {set} --documents 5 --out {closed}/small",
        "train --config {repository}/configs/sample.yaml --shards {set} --output_dir {closed}/run",
    ],
)
def test_an_output_in_a_closed_directory_is_one_clear_line(
    command: str, run: Run, closed: Path, sample_set: Path, tokenizer_dir: Path, hub: Hub
) -> None:
    hub.put("datasets/fjcanyue/wikipedia-zh-cn", "wikipedia-zh-cn-20240820.json", b"[]")
    places = {"sample": SAMPLE, "tokenizer": tokenizer_dir, "closed": closed, "set": sample_set}
    words = [word.format(repository=REPOSITORY, **places) for word in command.split()]
    assert_one_error_line(run(*words), str(closed), "Permission denied")


def test_a_set_without_write_permission_is_read(run: Run, sample_set: Path) -> None:
    for command in ("info", "verify", "cat"):
        result = run("shards", command, sample_set)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_set_without_write_permission_is_trained_on_without_a_home(
    run: Run, sample_set: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "sample.yaml").read_text(encoding="utf-8"))
    config["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "warmup_steps": 0}
    config["generation"]["max_new_tokens"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    out = tmp_path / "run"
    result = run("train", "--config", tmp_path / "config.yaml", "--shards", sample_set, "--output_dir", out)
    assert result.returncode == 0, result.stderr
    for path in [*out.rglob("*"), out]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    result = run("train.generate", out, "--prompt", "牛顿")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_the_qwen2_tokenizer_needs_no_cache(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    monkeypatch.setattr(qwen2, "build_tokenizer_json", lambda _ranks: b"{}")
    assert qwen2.qwen2_tokenizer_json() == b"{}"


def test_a_user_without_a_home_learns_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_path: str) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        user_cache()
