"""Generation: a prompt is continued the same alone, in a batch and streamed; what is written can't harm a terminal."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pty
import select
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from shards.common.errors import InputError
from shards.common.text import visible
from tests.conftest import run_python
from tests.train.processes import PATIENCE_SECONDS
from tests.train.processes import command as start
from train import generate as command
from train.__main__ import main as train
from train.generate import find_model, main, read_prompts
from train.run_directory import read_record
from train.sampling import Continuation, continue_prompts, load_model
from train.settings import GenerationSettings

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
PROMPTS = ["abc", "f", "012345", "XYZ[", "tuv"]
VOCAB_SIZE = 257


@pytest.fixture(scope="module")
def loaded(trained: Any) -> Loaded:
    return load_model(trained.run / "model")


def texts(loaded: Loaded, settings: GenerationSettings, **options: Any) -> list[str]:
    return [sample.text for sample in continue_prompts(*loaded, settings, **options)]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_same_call_gives_the_same_texts_and_leaves_the_random_state(loaded: Loaded, temperature: float) -> None:
    settings = GenerationSettings(prompts=PROMPTS, temperature=temperature, top_k=20, top_p=0.9, max_new_tokens=20)
    before = torch.get_rng_state()
    found = texts(loaded, settings, num_samples=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert texts(loaded, settings, num_samples=2) == found
    if temperature:
        assert texts(loaded, dataclasses.replace(settings, seed=1), num_samples=2) != found
        assert len(set(found)) == len(found)
    else:  # padding on the left changes nothing
        assert texts(loaded, settings, batch_sequences=1) == texts(loaded, settings, batch_sequences=16) == found[::2]


def test_a_text_is_what_generate_samples_after_its_seed(loaded: Loaded) -> None:
    model, tokenizer = loaded
    settings = GenerationSettings(prompts=["abc"], temperature=1.3, top_k=40, top_p=0.95, seed=5, max_new_tokens=20)
    (sample,) = continue_prompts(model, tokenizer, settings)
    ids = tokenizer("abc", return_tensors="pt").input_ids
    torch.manual_seed(5)
    options: Any = {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95, "max_new_tokens": 20}
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    assert tokenizer.decode(output[0, 3:], skip_special_tokens=True) == sample.text
    assert sample.ended == (output[0, -1].item() == 256)
    assert sample.num_tokens == output.shape[1] - 3 - sample.ended


def test_ids_without_a_token_are_never_chosen(loaded: Loaded, trained: Any, tmp_path: Path) -> None:
    """Also where the file that says so is missing, and nothing else is likely."""
    _, tokenizer = loaded
    shutil.copytree(trained.run / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[VOCAB_SIZE:] = model.model(torch.tensor([[97]])).last_hidden_state[0, -1] * 100
    assert model(torch.tensor([[97]])).logits[0, -1].argmax() >= VOCAB_SIZE
    for temperature in (0.0, 2.0):
        settings = GenerationSettings(prompts=["a"], temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=8)
        with mock.patch.object(tokenizer, "decode", wraps=tokenizer.decode) as decode:
            list(continue_prompts(model, tokenizer, settings, num_samples=4 if temperature else 1))
        assert max(token for call in decode.call_args_list for token in call.args[0]) < VOCAB_SIZE


def test_terminal_escapes_are_shown_and_not_obeyed() -> None:
    assert visible("a\x1b[2J\r\u202eb\x9b\t\n\u3000中") == "a\\x1b[2J\\r\\u202eb\\x9b\t\n\u3000中"
    sample = Continuation(prompt="\x1b]0;p\x07", text="x\x1b[31m\u202e\n", num_tokens=1, ended=True)
    assert str(sample) == "【\\x1b]0;p\\x07】x\\x1b[31m\\u202e"
    line = command.json_line(sample, GenerationSettings())
    assert line.isprintable()
    assert (json.loads(line)["prompt"], json.loads(line)["text"]) == (sample.prompt, sample.text)


def test_json_lines_from_a_file_of_prompts(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: Loaded
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufefff\r\n\n  \nXYZ[\n".encode())
    options = ["--json", "--num", "2", "--seed", "3", "--top-p", "0.9", "--max_new_tokens", "7"]
    main([str(trained.run), "--prompt", "abc", "--prompt-file", str(file), *options])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in ("abc", "f", "XYZ[") for _ in range(2)]
    settings = {(line["top_p"], line["max_new_tokens"], line["temperature"], line["seed"]) for line in lines}
    assert settings == {(0.9, 7, 1.0, 3)}


def test_checkpoints_of_a_run_that_goes_on(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("model", "swanlab"))
    with pytest.raises(InputError, match=r"no model here.*its newest checkpoint can be used with --checkpoint 44"):
        main([str(run)])
    main([str(run), "--checkpoint", "42", "--temperature", "0", "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith("【ab】")  # the run's prompt
    assert find_model(run, "42") == find_model(run, "checkpoint-42") == run / "checkpoint-42"
    assert find_model(run, "latest") == run / "checkpoint-44"
    with pytest.raises(InputError, match="no checkpoint '40'; the run has 42, 44"):
        main([str(run), "--checkpoint", "40"])
    with pytest.raises(InputError, match="no checkpoint 'latest'; the run has none"):
        main([str(tmp_path), "--checkpoint", "latest"])


def test_a_mistyped_run_is_answered_with_the_nearest(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sample").mkdir(parents=True)
    for typed in ("runs/sampel", "sample", "sampel"):
        with pytest.raises(InputError, match="did you mean 'runs/sample'"):
            find_model(Path(typed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "2", "--temperature", "0"], "give --temperature above 0"),
        (["--interactive", "--prompt", "a"], "--interactive: asks for the prompts"),
        (["--num", "0"], "--num: expected at least 1, found 0"),
        (["--prompt-file", "prompts.tx"], r"prompts.tx: can't be read \(No such file.*\); did you mean 'prompts.txt'"),
        (["--prompt-file", "prompts.txt"], "no prompts in it"),
        (["--prompt-file", "latin1.csv"], r"not UTF-8 \(byte 1\)"),
        (["--prompt-file", "."], "Is a directory"),
        (["--temperature", "-1"], "temperature: expected 0, or 0.001 to 100, found -1"),
    ],
)
def test_wrong_options_are_refused(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (tmp_path / "prompts.txt").write_text("\n \n")
    (tmp_path / "latin1.csv").write_bytes(b"a\xe9")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main([str(trained.run), *arguments])


def test_prompts_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("一\n二".encode())))
    assert read_prompts(Path("-")) == ["一", "二"]


def test_conversation_without_a_terminal(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc\n \nXYZ\n"))
    settings = GenerationSettings(max_new_tokens=4, temperature=0.0)
    command.converse(*loaded, settings, num_samples=1)
    expected = texts(loaded, dataclasses.replace(settings, prompts=["abc", "XYZ"]), batch_sequences=1)
    assert capsys.readouterr().out == "".join(
        f"【{prompt}】{visible(text)}\n\n" for prompt, text in zip(("abc", "XYZ"), expected, strict=True)
    )


OPTIONS = ["--max-new-tokens", "1000000", "--temperature", "3", "--top_k", "0"]


def take_terminal(name: str) -> None:
    """Let a terminal be that of this process."""
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ["TERM"] = "dumb"


def test_conversation_on_a_terminal(trained: Any, tmp_path: Path) -> None:
    """Streams, survives Ctrl-C in the middle of a text, and ends with status 0 at Ctrl-D."""
    terminal, child_side = pty.openpty()
    seen = ""

    def expect(part: str) -> None:
        nonlocal seen
        while part not in seen:
            assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], seen
            seen += os.read(terminal, 65536).decode(errors="replace")
        seen = seen.partition(part)[2]

    take = functools.partial(take_terminal, os.ttyname(child_side))
    with start(main, trained.run, "--interactive", *OPTIONS, files=tmp_path / "generate", prepare=take) as conversation:
        expect("> ")
        os.write(terminal, b"abc\n")
        expect("【abc】")
        os.write(terminal, b"\x03")
        expect("> ")
        os.write(terminal, b"\x04")
        assert conversation.status() == 0
    os.close(terminal)
    os.close(child_side)


def test_saved_model_works_in_transformers_alone(trained: Any, tmp_path: Path) -> None:
    """In a process that doesn't know this project: the pipeline, and the Auto classes."""
    code = """
import importlib.util, json, sys
assert importlib.util.find_spec("train") is None and importlib.util.find_spec("shards") is None
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
assert model.config.use_cache and model.generation_config.use_cache is not False
inputs = tokenizer("CDE", return_tensors="pt")
direct = tokenizer.decode(model.generate(**inputs, do_sample=False, min_new_tokens=3)[0], skip_special_tokens=True)
(answer,) = pipeline("text-generation", model=sys.argv[1], device="cpu")("CDE", do_sample=False, min_new_tokens=3)
print(json.dumps([direct, answer["generated_text"]]))
"""
    alone = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = run_python("-c", code, trained.run / "model", cwd=tmp_path, env=alone)
    assert finished.returncode == 0, finished.stderr
    direct, answer = json.loads(finished.stdout)
    assert direct == answer
    assert direct.startswith("CDE") and len(direct) > 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"max_new_tokens": [1]}, r"max_new_tokens: expected a whole number, found \[1\]"),
        ({"temperature": 1e-45}, "temperature: expected 0, or 0.001 to 100"),
    ],
)
def test_saved_settings_of_another_kind_are_refused(tmp_path: Path, content: dict[str, Any], expected: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"generation_config.json: .*{expected}"):
        command.generation_settings(tmp_path, {})


def test_a_prompt_with_an_id_that_the_model_lacks_is_refused(trained: Any) -> None:
    model, tokenizer = load_model(trained.run / "model")
    tokenizer.add_tokens([f"<{number}>" for number in range(200)])
    with pytest.raises(InputError, match=r"the prompt 'a<199>' has the token id 456, the model has 384 ids"):
        list(continue_prompts(model, tokenizer, GenerationSettings(prompts=["a<199>"])))


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_run_that_diverged_is_finished_without_samples(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    options = f"--learning_rate 1e5 --max_steps 8 --model.initializer_range 1e30 --generation.temperature {temperature}"
    train(["--config", str(write_config(generation={"prompts": ["ab"]})), *options.split()])
    assert "no samples: the model's outputs are non-finite" in capsys.readouterr().out
    assert read_record(tmp_path / "run")["state"] == "finished"
    with pytest.raises(InputError, match="the model's outputs are non-finite"):
        main([str(tmp_path / "run")])
