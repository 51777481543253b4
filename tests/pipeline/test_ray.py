"""The engine `ray` on a real cluster: the bytes and the errors of the local engine, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the package ray: pip install '.[ray]'")

from pipeline.engines import ray as ray_module
from pipeline.engines.ray import ray_engine
from shards.common.errors import InputError
from tests.conftest import REPOSITORY, SAMPLE, directory_bytes, sample_records, write_corpus
from tests.pipeline.building import Builder, stored
from tests.pipeline.test_engines import Faulty, ignore, task

URL = "s3://bucket-s3"


def options(corpus: Path) -> dict[str, Any]:
    """With a function of the user's, whose file the workers need not have."""
    return {
        "unit_bytes": 40_000,
        "dedup": "exact",
        "on_bad_record": "skip",
        "transform": str(corpus.with_name("clean.py")),
    }


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A node of two cores; nodes may be added and lost."""
    import ray
    from ray.cluster_utils import Cluster

    if any(item.get_closest_marker("slow") for item in request.session.items):
        request.getfixturevalue("running")  # workers know the object store by the environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        patch.setenv("RAY_worker_register_timeout_seconds", "300")  # a busy machine takes its time
        cluster = Cluster()
        try:
            start_node(cluster, num_cpus=2, include_dashboard=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def start_node(cluster: Any, **options: Any) -> Any:
    """On a machine that does much else, a node may miss Ray's 30 seconds."""
    for _ in range(2):
        try:
            return cluster.add_node(**options)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    pytest.skip("this machine is too busy: no node of Ray starts within 30 seconds")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's texts several times, and a record that is skipped."""
    records = [{"text": record["text"] + str(number // 2)} for number in range(4) for record in sample_records()]
    directory = tmp_path_factory.mktemp("corpus")
    (directory / "clean.py").write_text("def transform(record):\n    return record['text'].replace('的', '之')\n")
    return write_corpus(directory / "corpus.json", [*records, {"text": 7}])


@pytest.fixture(scope="module")
def expected(corpus: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that the local engine makes."""
    out = tmp_path_factory.mktemp("local") / "set"
    Builder(tokenizer_dir)(corpus, out, **options(corpus))
    return directory_bytes(out)


def test_bytes_errors_and_deaths_are_those_of_the_local_engine(
    tmp_path: Path, run: Builder, corpus: Path, expected: Any, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "MAX_RETRIES", 1)

    def act(number: int) -> None:
        if number == 1:
            raise InputError("bad input")
        if number == 3:
            os._exit(1)
        if number == 4:
            raise KeyError("ours")

    answer = signal.getsignal(signal.SIGTERM)
    with ray_engine(cluster.address, None) as engine:
        assert signal.getsignal(signal.SIGTERM) is answer  # Ray's own ends the process
        assert engine.num_workers in (2, 3)  # a node that another test lost may still be counted
        # A build uses the connection that is there.
        run(corpus, tmp_path / "out" / "set", **options(corpus), engine="ray", num_workers=None)
        assert directory_bytes(tmp_path / "out") == {f"set/{name}": content for name, content in expected.items()}
        with pytest.raises(InputError, match="field 'text': expected a string, found a number"):
            run(corpus, tmp_path / "bad", engine="ray", num_workers=None)
        ended = engine.run(Faulty(act), deque(map(task, (0, 1, 4))), ignore)
        results = {done.unit.number: result for done, result in ended}
        assert (results[0], str(results[1])) == (b"0", "bad input")
        assert isinstance(results[4], RuntimeError) and "KeyError: 'ours'" in str(results[4])
        with pytest.raises(InputError, match=r"/corpus: unit 3 \(from 30 on\): the tokenizer worker died 2 times"):
            list(engine.run(Faulty(act), deque([task(3)]), ignore))


def start(corpus: Path, name: str, tokenizer_dir: Path, cluster: Any) -> subprocess.Popen[str]:
    arguments = ["build", corpus, "--out", f"{URL}/{name}", "--tokenizer", tokenizer_dir, "--block-tokens", "64"]
    given = options(corpus).items()
    settings = [part for name, value in given for part in (f"--{name.replace('_', '-')}", str(value))]
    engine = ["--engine", "ray", "--ray-address", cluster.address]
    command, pipe = [sys.executable, "-m", "pipeline", *map(str, arguments), *settings, *engine], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=REPOSITORY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["node", "driver"])
def test_what_dies_in_the_middle_changes_no_byte(
    tokenizer_dir: Path, corpus: Path, expected: dict[str, bytes], cluster: Any, name: str
) -> None:
    lost = start_node(cluster, num_cpus=1) if name == "node" else None
    process = start(corpus, name, tokenizer_dir, cluster)
    deadline = time.monotonic() + 120
    while len(stored(f"{URL}/{name}.partial/receipts")) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    if lost is not None:
        cluster.remove_node(lost, allow_graceful=False)
    else:
        process.kill()
        process.communicate()
        assert "manifest.json" not in stored(f"{URL}/{name}")
        process = start(corpus, name, tokenizer_dir, cluster)
    _output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert stored(f"{URL}/{name}") == expected and stored(f"{URL}/{name}.partial") == {}


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, run: Builder) -> None:
    with pytest.raises(InputError, match=r"ray_address 127\.0\.0\.1:1: can't connect to a Ray cluster there"):
        run(SAMPLE, tmp_path / "set", engine="ray", ray_address="127.0.0.1:1")


def test_sigterm_while_ray_starts_is_answered_as_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[int] = []
    answer = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))

    def start_and_end(**_options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(15)

    monkeypatch.setattr("ray.init", start_and_end)
    try:
        with pytest.raises(SystemExit), ray_engine(None, None):
            pass
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, answer)


def test_without_ray_a_line_says_what_to_install(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install '.\[ray\]'"):
        run(SAMPLE, tmp_path / "set", engine="ray")
