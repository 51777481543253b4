"""The fuzzer's checks (`python -m bench.fuzz`) on its seeds, on every input that it found a fault with, and on new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fuzz.__main__ import SEEDS, main
from bench.fuzz.loop import Run
from bench.fuzz.oracle import Fault, load, same
from bench.fuzz.targets import TARGETS, Target
from tests.conftest import needs_compiler

FILES = sorted(path for path in SEEDS.rglob("*") if path.is_file())
NUM_EXAMPLES = {"json-cuts": 25, "native-ids": 300}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_seeds_and_inputs_found(path: Path) -> None:
    if path.parent.name == "native-ids":
        needs_compiler()
    TARGETS[path.parent.name].check(path.read_bytes())


def test_every_target_has_seeds_and_all_are_small() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
    assert sum(path.stat().st_size for path in FILES) < 10_000


@pytest.mark.parametrize("name", TARGETS)
def test_the_command_on_seeds_changed_at_random(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "native-ids":
        needs_compiler()
    num_inputs = NUM_EXAMPLES.get(name, 600)
    options = f"{name} --inputs {num_inputs} --seconds 1e9 --seed 2 --failures {tmp_path}"
    assert main(options.split()) == 0
    assert f"{name}: {num_inputs} inputs" in capsys.readouterr().out


def test_one_failure_of_a_kind_is_kept_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails_on_zeros(data: bytes) -> None:
        """Fails."""
        if data[:1] == b"\0":
            raise Fault("a zero")

    target = Target(fails_on_zeros, (b"\0", b"1"))
    for number in (1, 2):
        run = Run("zeros", target, tmp_path / "zeros")
        run.random(tmp_path / "none", number, num_inputs=500, seconds=60)
        assert run.num_inputs == 500 and run.num_failures > 0
    (kept,) = (tmp_path / "zeros").iterdir()
    assert kept.read_bytes()[:1] == b"\0"
    assert "500 inputs in" in capsys.readouterr().out


def test_values_are_compared_by_kind_too() -> None:
    assert same(load(b'{"a": [1, 2.5, "x", null]}'), {"a": [1, 2.5, "x", None]})
    assert same(2**64, float(2**64)) and not same(1, True) and not same(1, 1.0) and not same([1], [1, 2])
    for bad in (b"NaN", b'"\\ud800"', b"\xff", b"[1,]", b"\xef\xbb\xbf1"):
        with pytest.raises(ValueError):
            load(bad)
