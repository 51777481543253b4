"""Generation: a prompt is continued the same alone, in a batch and streamed; what is written can't harm a terminal."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import os
import pty
import select
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM

from shards.common.errors import InputError
from shards.common.text import visible
from tests.train.processes import PATIENCE_SECONDS
from tests.train.processes import command as start
from tests.train.runs import Capture, Patch, WriteConfig, assert_same_bits, losses, stop_after, train_to_the_end
from train import generate as command
from train.__main__ import main as train
from train.callbacks import SamplesAtEvaluation
from train.generate import find_model, main, read_prompts
from train.run_directory import read_lines, read_record
from train.sampling import Continuation, continue_prompts, load_model, load_tokenizer
from train.settings import GenerationSettings

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
PROMPTS = ["abc", "f", "012345", "XYZ[", "tuv"]
VOCAB_SIZE = 257


@pytest.fixture(scope="module")
def loaded(trained: Path) -> Loaded:
    return load_model(trained / "model")


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
        assert len(set(found)) == len(found) == len(set(texts(loaded, settings, num_samples=2, batch_sequences=1)))
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


def test_a_prompt_is_split_as_the_tokenizer_says(trained: Path, tmp_path: Path) -> None:
    """AutoTokenizer splits and normalizes as Qwen2 does for any such model, and adds Qwen2's padding token."""
    shutil.copytree(trained / "model", tmp_path, dirs_exist_ok=True)
    path, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    content = json.loads(path.read_bytes())
    content |= {"normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}}
    path.write_text(json.dumps(content))
    config.write_text(json.dumps({"eos_token": json.loads(config.read_bytes())["eos_token"]}))
    tokenizer, expected = load_tokenizer(tmp_path), tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer("Abc D  e").input_ids == expected.encode("Abc D  e").ids
    assert len(tokenizer) == expected.get_vocab_size()


def test_ids_without_a_token_are_never_chosen(loaded: Loaded, trained: Path, tmp_path: Path) -> None:
    """Also where the file that says so is missing, and nothing else is likely."""
    _, tokenizer = loaded
    shutil.copytree(trained / "model", tmp_path / "model")
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


def test_json_lines_from_a_file_of_prompts(trained: Path, tmp_path: Path, capsys: Capture, loaded: Loaded) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufefff\r\n\n  \nXYZ[\n".encode())
    options = ["--json", "--num", "2", "--seed", "3", "--top-p", "0.9", "--max_new_tokens", "7"]
    main([str(trained), "--prompt", "abc", "--prompt-file", str(file), *options])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == [prompt for prompt in ("abc", "f", "XYZ[") for _ in range(2)]
    settings = {(line["top_p"], line["max_new_tokens"], line["temperature"], line["seed"]) for line in lines}
    assert settings == {(0.9, 7, 1.0, 3)}


def test_checkpoints_of_a_run_that_goes_on(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("model", "swanlab"))
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


def test_a_mistyped_run_is_answered_with_the_nearest(trained: Path, tmp_path: Path, monkeypatch: Patch) -> None:
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
        (["--prompt", os.fsdecode(b"a\xff")], r"the prompt 'a\\udcff' isn't text in UTF-8"),
        (["--temperature", "-1"], "temperature: expected 0, or 0.001 to 100, found -1"),
    ],
)
def test_wrong_options_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: Patch, arguments: list[str], message: str
) -> None:
    (tmp_path / "prompts.txt").write_text("\n \n")
    (tmp_path / "latin1.csv").write_bytes(b"a\xe9")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main([str(trained), *arguments])


def test_prompts_come_from_standard_input(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("一\n二".encode())))
    assert read_prompts(Path("-")) == ["一", "二"]


def test_conversation_without_a_terminal(loaded: Loaded, monkeypatch: Patch, capsys: Capture) -> None:
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


def test_conversation_on_a_terminal(trained: Path, tmp_path: Path) -> None:
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
    with start(main, trained, "--interactive", *OPTIONS, files=tmp_path / "generate", prepare=take) as conversation:
        expect("> ")
        os.write(terminal, b"abc\n")
        expect("【abc】")
        os.write(terminal, b"\x03")
        expect("> ")
        os.write(terminal, b"\x04")
        assert conversation.status() == 0
    os.close(terminal)
    os.close(child_side)


def test_saved_settings_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(InputError, match=r"generation_config.json: .*temperature: expected a number, found 'hot'"):
        command.generation_settings(tmp_path, {})


def test_a_prompt_with_an_id_that_the_model_lacks_is_refused(trained: Path) -> None:
    model, tokenizer = load_model(trained / "model")
    tokenizer.add_tokens([f"<{number}>" for number in range(200)])
    with pytest.raises(InputError, match=r"the prompt 'a<199>' has the token id 456, the model has 384 ids"):
        list(continue_prompts(model, tokenizer, GenerationSettings(prompts=["a<199>"])))


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_run_that_diverged_is_finished_without_samples(
    write_config: WriteConfig, tmp_path: Path, capsys: Capture, temperature: str
) -> None:
    options = f"--learning_rate 1e5 --max_steps 8 --model.initializer_range 1e30 --generation.temperature {temperature}"
    train(["--config", str(write_config(generation={"prompts": ["ab"]})), *options.split()])
    assert "no samples: the model's outputs are non-finite" in capsys.readouterr().out
    assert read_record(tmp_path / "run")["state"] == "finished"
    with pytest.raises(InputError, match="the model's outputs are non-finite"):
        main([str(tmp_path / "run")])


# ---- in training ----


def written(run: Path) -> list[tuple[int, str, str]]:
    return [(line["step"], line["prompt"], line["text"]) for line in read_lines(run / "samples.jsonl")]


def test_samples_change_no_bit_of_the_losses_and_a_continued_run_has_each_once(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With dropout, so that random numbers matter in each step. One was stopped after step 6's evaluation, at step 4."""
    training = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4}
    config = write_config(training=training, generation={"prompts": ["ab", "xyz"]}, model={"attention_dropout": 0.3})
    whole, without, stopped = (tmp_path / name for name in ("whole", "without", "stopped"))
    train_to_the_end(config, "--output_dir", str(whole))
    samples = written(whole)
    assert [sample[:2] for sample in samples] == [*itertools.product((2, 4, 6, 8, 10, 11), ("ab", "xyz"))]
    assert samples[0][2] != samples[-2][2], "the model learnt something"

    train_to_the_end(config, "--output_dir", str(without), "--generation.every_evaluation", "false")
    assert written(without) == samples[-2:]
    assert_same_bits(without, whole)
    train_to_the_end(config, "--output_dir", str(tmp_path / "unevaluated"), "--eval_strategy", "no")
    assert losses(tmp_path / "unevaluated") == losses(whole), "nor does evaluation change any"

    stop_after(7, config, "--output_dir", str(stopped))
    assert [step for step, _, _ in written(stopped)] == [2, 2, 4, 4, 6, 6]
    train_to_the_end(config, "--output_dir", str(stopped))
    assert written(stopped) == samples
    assert_same_bits(stopped, whole)


def test_a_failure_ends_the_samples_and_not_the_training(trained: Path, monkeypatch: Patch, capsys: Capture) -> None:
    model, tokenizer = load_model(trained / "model")
    shown: list[tuple[list[Continuation], int]] = []
    settings = GenerationSettings(prompts=["ab"], max_new_tokens=10_000)
    callback = SamplesAtEvaluation(settings, tokenizer, lambda samples, step: shown.append((samples, step)))

    def evaluate(step: int) -> None:
        callback.on_evaluate(None, SimpleNamespace(global_step=step, max_steps=9), None, model=model)

    model.train()
    evaluate(3)
    assert all(module.training for module in model.modules())
    evaluate(9)  # the end's are written from the saved model
    assert [step for _, step in shown] == [3]
    assert shown[0][0][0].num_tokens <= 64

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(Qwen2ForCausalLM, "generate", fail)
    evaluate(5)
    evaluate(6)
    assert capsys.readouterr().out == "no samples from step 5 on: CUDA out of memory\n"
    assert len(shown) == 1
