"""GGUF files: what is written is what their readers find, or it is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.fakes import taught, tiny
from tuneworthy.engine import gguf_export
from tuneworthy.engine.chat import PLAIN_TEMPLATE, ChatFormat
from tuneworthy.errors import ModelError

MADE = {"base": {"sha256": "0" * 64}}
KINDS = {
    "llama": {},
    "llama untied": {},
    "gemma3_text": taught.GGUF_GEMMA,
}
TEXTS = ("turn the kitchen light on", "  two  spaces\n\nand café 灯 12345", "<|im_end|> is text")


def written(folder: Path, model: Any, tokenizer: Any, precision: str = "float32") -> Path:
    folder.mkdir(exist_ok=True)
    gguf_export.write(
        model, ChatFormat(tokenizer), folder / "model.gguf", precision, "commands lora", MADE
    )
    return folder


def read(folder: Path) -> tuple[Any, Any]:
    how = transformers.GgufConfig(gguf_file="model.gguf", dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32, quantization_config=how
    )
    return model, transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_finds_the_same_model(kind: str, tmp_path: Path) -> None:
    model = tiny.model(kind, **KINDS[kind])
    found, _ = read(written(tmp_path, model, tiny.tokenizer()))
    ids = torch.arange(4, 44)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            found(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("precision", "largest"), [("float16", 1e-3), ("bfloat16", 1e-2), ("q8_0", 1e-2)]
)
def test_fewer_bits_cost_so_much_and_vectors_stay_whole(
    precision: str, largest: float, tmp_path: Path
) -> None:
    model = tiny.model("llama", hidden_size=96, intermediate_size=64)  # rows of whole blocks
    found, _ = read(written(tmp_path, model, tiny.tokenizer(), precision))
    off = 0.0
    for name, wanted in model.state_dict().items():
        value = found.state_dict()[name]
        distance = float((value - wanted).abs().max() / wanted.abs().max())
        if wanted.dim() == 1:
            assert distance == 0, name
        off = max(off, distance)
    assert 0 < off < largest


def test_rows_that_no_block_divides_are_written_in_16_bits(tmp_path: Path) -> None:
    import gguf

    written(tmp_path, tiny.model("llama"), tiny.tokenizer(), "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "F16"  # 48 numbers a row
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"  # 96
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("bos", [False, True])
def test_a_reader_finds_the_same_tokenizer_and_template(bos: bool, tmp_path: Path) -> None:
    ours = tiny.tokenizer(bos=bos)
    _, found = read(written(tmp_path, tiny.model(), ours))
    for text in TEXTS:
        assert found(text)["input_ids"] == ours(text)["input_ids"], text
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert getattr(found, name) == getattr(ours, name)


def sentencepiece() -> Any:
    """Merges over letters with bytes to fall back on, as Gemma's are."""
    from tokenizers import AddedToken

    letters = sorted({*"turnthekicelgo", "\u2581", *"spawd"})
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("o", "n"), ("\u2581", "\u2581")]
    tokens = [*special, *pieces, *["".join(m) for m in merges], *letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    made = transformers.GemmaTokenizer(vocab=vocab, merges=merges)
    made.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<turn>", special=True, normalized=False)]}
    )
    return made


def test_a_tokenizer_of_pieces_is_read_the_same(tmp_path: Path) -> None:
    ours = sentencepiece()
    model = tiny.model("gemma3_text", **taught.GGUF_GEMMA)
    _, found = read(written(tmp_path, model, ours))
    for text in ("turn the kettle on", "the  on\nthe", "caf\u00e9 on"):
        ids = ours(text, add_special_tokens=False)["input_ids"]
        assert found(text, add_special_tokens=False)["input_ids"] == ids, text
        assert len(ids) < len(text.encode()) + 1
    assert found.chat_template == PLAIN_TEMPLATE


def test_the_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    import gguf

    written(tmp_path, tiny.model(), tiny.tokenizer())
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    field = reader.fields[gguf_export.PROVENANCE]
    assert json.loads(field.contents()) == MADE
    assert reader.fields["general.architecture"].contents() == "llama"
    assert all(np.isfinite(t.data).all() for t in reader.tensors if t.data.dtype == np.float32)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another architecture": (
        "qwen2",
        {},
        "GGUF is written for llama and gemma3_text, this base is qwen2",
    ),
    "layers in another order": (
        "gemma3_text",
        {},
        "its layers are not arranged as GGUF runtimes expect of Gemma 3",
    ),
    "scaled rotation": (
        "llama",
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        "rope scaling of kind linear is not written to GGUF yet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_say_is_an_error(case: str, tmp_path: Path) -> None:
    kind, shape, text = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        written(tmp_path, tiny.model(kind, **shape), tiny.tokenizer())
    assert caught.value.what == text
    assert caught.value.hint and caught.value.hint.startswith("--format merged")
    assert not list(tmp_path.iterdir())


def test_a_split_without_a_name_is_an_error(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="no name for how this tokenizer splits text"):
        written(tmp_path, tiny.model(), tokenizer)
