"""A tokenizer from a stranger's set brings its own files and nothing else."""

from __future__ import annotations

from pathlib import Path

from shards.vocabulary import copy_tokenizer


def test_only_a_tokenizers_files_are_copied_and_no_link_is_followed(tmp_path: Path) -> None:
    source, target, secret = tmp_path / "source", tmp_path / "target", tmp_path / "secret"
    secret.write_text("secret")
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "merges.txt", "config.json", "model.safetensors", "README.md"):
        (source / name).write_text(f"theirs: {name}")
    (source / "vocab.json").symlink_to(secret)
    (source / "added_tokens.json").mkdir()
    (target / "config.json").write_text("ours")
    copy_tokenizer(source, target)
    found = {path.name: path.read_text() for path in target.iterdir()}
    assert found == {
        "tokenizer.json": "theirs: tokenizer.json",
        "merges.txt": "theirs: merges.txt",
        "config.json": "ours",
    }
