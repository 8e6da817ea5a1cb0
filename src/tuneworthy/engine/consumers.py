"""Those who load exported files, asked for greedy answers; nothing here is our way of answering."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tuneworthy import store
from tuneworthy.engine import adapters
from tuneworthy.engine.export import GGUF_FILE
from tuneworthy.engine.models import Located, load_causal
from tuneworthy.errors import ModelError
from tuneworthy.types import Prompt

RUNNER = Path(__file__).with_name("openvino_runner.py")
UNKNOWN_TO_OPENVINO = "Unsupported model architecture"
OnAnswer = Callable[[int], None]
ROWS_AT_ONCE = 10
"""Padded on the left to one length."""


def by_peft(
    located: Located, folder: Path, prompts: Sequence[Prompt], most: int, dtype: Any, told: OnAnswer
) -> list[str]:
    """Transformers with the base, PEFT with the exported adapter."""
    import peft
    import transformers

    model = load_causal(located.folder, dtype)
    with adapters.quiet_peft():
        model = peft.PeftModel.from_pretrained(model, str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _answers(model, tokenizer, prompts, most, located.chat().stop_ids, told)


def by_transformers(
    located: Located, folder: Path, prompts: Sequence[Prompt], most: int, told: OnAnswer
) -> list[str]:
    """Transformers alone, with the exported folder and nothing else."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _answers(model, tokenizer, prompts, most, None, told)


def by_transformers_gguf(
    located: Located, folder: Path, prompts: Sequence[Prompt], most: int, dtype: Any, told: OnAnswer
) -> list[str]:
    """Transformers' reader of GGUF: weights, tokenizer and template out of the one file."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF_FILE,
        dtype=dtype,
        quantization_config=transformers.GgufConfig(gguf_file=GGUF_FILE, dequantize=True),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    return _answers(model, tokenizer, prompts, most, located.chat().stop_ids, told)


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    most: int,
    stop_ids: frozenset[int] | None,
    told: OnAnswer,
) -> list[str]:
    """Greedy, some rows at a time, prompts by the exported template and tokenizer.

    `stop_ids` where the files do not say what ends an answer; None: they do.
    """
    model.eval()
    ends = {} if stop_ids is None else {"eos_token_id": sorted(stop_ids)}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    said: list[str] = []
    for start in range(0, len(prompts), ROWS_AT_ONCE):
        rows = [_ids(tokenizer, prompt) for prompt in prompts[start : start + ROWS_AT_ONCE]]
        width = max(len(row) for row in rows)
        empty = [width - len(row) for row in rows]
        with torch.no_grad():
            found = model.generate(
                input_ids=torch.tensor([[pad] * n + row for n, row in zip(empty, rows)]),
                attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in empty]),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=pad,
                **ends,
            )
        for row in found[:, width:].tolist():
            said.append(tokenizer.decode(row, skip_special_tokens=True))
            told(len(said) - 1)
    return said


def _ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in prompt]
    ids: list[int] = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    return ids


def openvino_python(given: Path | None) -> Path | None:
    """An interpreter that has OpenVINO GenAI: the one given, this one, or none."""
    if given is not None:
        return given
    return Path(sys.executable) if find_spec("openvino_genai") else None


def by_openvino(
    python: Path, folder: Path, texts: Sequence[str], most: int, stop: Sequence[str]
) -> list[str] | None:
    """OpenVINO GenAI with the GGUF file, in a process of its own; it gets prompts as text.

    None where its reader does not know the architecture: nothing is wrong with the file then.
    """
    job = folder / ".openvino.json"
    values = {"model": str(folder / GGUF_FILE), "prompts": list(texts), "max_tokens": most}
    store.write_json(job, {**values, "stop": list(stop)})
    try:
        run = subprocess.run(
            [python, RUNNER, job], capture_output=True, text=True, check=False, timeout=1800
        )
    finally:
        job.unlink()
    lines = [line[2:] for line in run.stdout.splitlines() if line.startswith("@ ")]
    if UNKNOWN_TO_OPENVINO in run.stderr:
        return None
    if run.returncode or not lines:
        last = (run.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ModelError(
            f"OpenVINO GenAI does not load it: {last[:200]}",
            where=GGUF_FILE,
            hint="--precision float16 is what it reads best",
        )
    answers: list[str] = json.loads(lines[-1])["answers"]
    return answers
