"""The model card tells what the run's files tell, and nothing in them can become markup."""

from __future__ import annotations

import copy
import math
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

import shards
from train.model_card import escaped, fenced, model_card, write_model_card
from train.run_directory import git_state, read_record
from train.sampling import Continuation

HOSTILE = "a](http://x)<img src=x>|`b`\n# c*_~&$@d\x1b[2J www.evil.org"


def test_card_of_a_finished_run(trained: Path) -> None:
    record = read_record(trained)
    data, results = shards.open(record["shards"]["path"]), record["results"]
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-generation")
    assert "license" not in head and "language" not in head
    split = data["val"]
    bits = results["eval_loss"] / math.log(2) * split.num_tokens / split.num_text_bytes
    assert results["eval_bits_per_byte"] == pytest.approx(bits)
    size = sum(weight.numel() for weight in load_file(trained / "model" / "model.safetensors").values())
    for part in (
        f"| Fingerprint | `{data.fingerprint}` |",
        "tiny: 27 records",
        "| Split train | 22 documents, 352 tokens, 22 blocks |",
        f"| Parameters | {size:,} |",
        "| Steps | 44 |",
        "| Batch | 4 blocks = 64 tokens a step |",
        f"| Tokens | {44 * 64:,}, 8.00 × the set |",
        "| Learning rate | 0.01 at its peak |",
        f"| Validation loss, nats a token | {results['eval_loss']:.4f} |",
        f"| Bits per byte of text | {bits:.4f} |",
        'tokenizer("ab", return_tensors="pt")',
        f"torch {record['sessions'][0]['packages']['torch']}",
        "【ab】",
    ):
        assert part in card, part


def test_example_in_the_card_runs(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(trained / "model")
    card = Path("README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("ab")


def test_nothing_in_the_files_becomes_markup(trained: Path) -> None:
    record = copy.deepcopy(read_record(trained))
    record["settings"]["tracking"]["name"] = HOSTILE
    record["settings"]["generation"]["prompts"] = [f'"""{HOSTILE}```']
    record["training_arguments"]["lr_scheduler_type"] = HOSTILE
    record["sessions"][-1]["packages"] = {HOSTILE: HOSTILE}
    data: Any = shards.open(record["shards"]["path"])
    manifest = copy.deepcopy(data.manifest)
    object.__setattr__(manifest.sources[0], "path", HOSTILE)
    object.__setattr__(manifest.tokenizer, "name", HOSTILE)

    class Renamed:
        path = SimpleNamespace(name=HOSTILE)

        def __getitem__(self, name: str) -> Any:
            return data[name]

    renamed: Any = Renamed()
    renamed.manifest, renamed.sets = manifest, [renamed]
    sample = Continuation(prompt=HOSTILE, text=f"````\n{HOSTILE}\n```", num_tokens=1, ended=True)
    card = model_card(record, renamed, trained / "model", [sample])
    assert "\x1b" not in card
    outside = re.sub(r"(?ms)^(`{3,})\w+\n.*?^\1$", "", card)
    outside = outside.split("---\n", 2)[2]
    assert outside.count("\n# ") == 1
    bare = re.sub(r"\\[\W_]", "", outside)
    for markup in ("](", "<img", "www.", "http:", "`b`", "\nc"):
        assert markup not in bare, markup
    rows = [line for line in bare.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3}
    assert escaped("a_b\nc") == r"a\_b\\nc"
    assert fenced("x ```` y").startswith("`````text\n")


def test_a_card_that_can_not_be_written_stops_nothing(trained: Path, tmp_path: Path) -> None:
    record = read_record(trained)
    data = shards.open(record["shards"]["path"])
    (line,) = write_model_card(tmp_path, record, data)
    assert line.startswith("the model card can't be written: ")


def test_record_has_the_commit_of_the_code(trained: Path, tmp_path: Path) -> None:
    (session,) = read_record(trained)["sessions"]
    assert "git" in session and "torch" in session["packages"]
    file = tmp_path / "file.py"
    file.touch()
    assert git_state(file) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", *identity, "-C", str(tmp_path), *arguments], text=True).strip()

    git("init", "-q")
    assert git_state(file) is None, "not of the checkout's files"
    git("add", "file.py")
    git("commit", "-qm", "one")
    for content in ("", "x = 1\n"):
        file.write_text(content)
        assert git_state(file) == {"commit": git("rev-parse", "HEAD"), "dirty": bool(content)}
