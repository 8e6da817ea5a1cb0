"""`export`: files that their consumers load, compared with the live arm before anybody gets them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tuneworthy as tw
from tests.cli.conftest import tuneworthy  # noqa: F401  the fixture
from tests.fakes import projects, taught
from tuneworthy import store
from tuneworthy.engine import agreement, consumers, gguf_export, hardware
from tuneworthy.engine.agreement import NOISE_SHARE, Agreement
from tuneworthy.errors import ModelError, ProjectError, StorageError
from tuneworthy.workflows import exporting

FORMATS = {
    "adapter": ("adapter_model.safetensors", "PEFT"),
    "merged": ("model.safetensors", "transformers"),
    "gguf": ("model.gguf", "transformers' GGUF reader"),
    "ollama": ("Modelfile", "transformers' GGUF reader"),
}

ROWS = 8


def float32() -> hardware.NumberFormat:
    """The same on every machine."""
    return hardware.NumberFormat("cpu", torch.float32, "it is a test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project on a tiny base that knows the task, with an adapter trained on top."""
    folder = tmp_path_factory.mktemp("exporting") / "project"
    rows = projects.rows(100)
    projects.write(
        folder,
        rows,
        base="base",
        data__test=20,
        data__dev=20,
        data__train=40,
        lora__learning_rate=1e-3,
        lora__epochs=1,
    )
    taught.save(folder / "base", rows, steps=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEWORTHY_HOME", str(folder / "home"))
        patch.setattr(hardware, "number_format", float32)
        patch.setattr(exporting, "ROWS", ROWS)
        tw.train(folder, "lora")
        tw.evaluate(folder, "lora")
        yield folder


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_loaded_by_its_consumer(trained: Path, name: str) -> None:
    found = tw.export(trained, "lora", format=name)
    file, consumer = FORMATS[name]
    assert found.folder == trained / "exports" / found.folder.name
    assert (found.folder / file).exists()
    [check] = found.record["checks"]
    assert check["consumer"] == consumer and check["rows"] == ROWS
    assert check["same"] >= (1 - NOISE_SHARE) * ROWS
    assert not [p for p in found.folder.parent.iterdir() if p.name.startswith(".")]


def test_half_the_bits_of_a_file_are_within_the_noise(trained: Path) -> None:
    for precision in ("q8_0", "bfloat16"):
        found = tw.export(trained, "lora", format="gguf", precision=precision)
        assert found.folder.name == f"commands-lora-gguf-{precision}"
        assert found.record["checks"][0]["same"] >= 6


def test_an_export_says_what_it_was_made_of(trained: Path, tmp_path: Path) -> None:
    found = tw.export(trained, "lora", to=tmp_path / "out")
    made, run = found.record["provenance"], store.runs(trained)[-1]
    config, fit = store.read_json(run.config), store.read_json(run.fit("lora"))
    assert made["base"]["sha256"] == config["base"]["sha256"]
    assert made["data"]["sha256"] == config["data"]["sha256"]
    assert made["data"]["test_sha256"] == store.read_json(run.seal)["sha256"]
    assert made["packages"]["torch"] == config["packages"]["torch"]
    assert made["machine"] == config["machine"] and made["run"] == run.path.name
    assert found.record["recipe"]["training"] == fit["training"]["settings"]
    for name, sha256 in found.record["files"].items():
        assert store.sha256_file(tmp_path / "out" / name) == sha256
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for part in (config["base"]["sha256"], config["data"]["sha256"], "learning_rate | 0.001"):
        assert part in card
    assert str(trained) not in card
    adapter = store.read_json(tmp_path / "out" / "adapter_config.json")
    assert adapter["base_model_name_or_path"] == "base"


def test_files_that_answer_otherwise_are_not_exported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gguf_export._arranged

    def careless(tensor: Any, name: str, config: Any) -> Any:
        values = real(tensor, name, config)
        return -values if name.endswith("0.self_attn.o_proj.weight") else values

    monkeypatch.setattr(gguf_export, "_arranged", careless)
    with pytest.raises(ModelError, match="GGUF reader does not answer as the live arm does") as no:
        tw.export(trained, "lora", format="gguf", to=tmp_path / "out")
    assert "the arm says" in no.value.what and no.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("same", "worst", "agrees"),
    [(20, 0.0, True), (15, 0.5, True), (14, 0.1, False), (19, 0.6, False)],
)
def test_noise_is_few_answers_and_near_ties(same: int, worst: float, agrees: bool) -> None:
    found = Agreement("it", 20, same, worst, 0.5, ())
    assert found.agrees is agrees
    assert (f"{worst:.2f} nats" in found.said) is (same < 20)


def test_no_answer_is_no_agreement() -> None:
    assert not Agreement("it", 0, 0, 0.0, 0.5, ()).agrees


def test_how_much_likelier_is_measured_where_answers_part(trained: Path) -> None:
    run = store.runs(trained)[-1]
    made = exporting._Export(
        run,
        tw.load(trained),
        "lora",
        store.read_json(run.fit("lora")),
        "gguf",
        "float32",
        store.Journal(),
    )
    live = agreement.Live(made.engine, made.weights, made.prompts[:3], made.decoding)
    said = [answer.text for answer in live.answers if answer]
    assert len(said) == 3 and live.compare("itself", said, "float32").same == 3
    other = [said[0], said[1][:12] + "zzz" + said[1][12:], said[2]]
    found = live.compare("another", other, "float32")
    assert found.same == 2 and found.worst_nats > 3 and not found.agrees
    [(mine, theirs, gap)] = found.differing
    assert (mine, theirs, gap) == (said[1], other[1], found.worst_nats)


def test_openvino_gets_prompts_as_text_in_a_process_of_its_own(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for its package: it repeats what the live arm is known to say."""
    told = {}
    real = consumers.by_transformers_gguf

    def first(*arguments: Any) -> list[str]:
        told["answers"] = real(*arguments)
        (tmp_path / "answers.json").write_text(json.dumps(told["answers"]), "utf-8")
        return told["answers"]

    monkeypatch.setattr(consumers, "by_transformers_gguf", first)
    fake = tmp_path / "path"
    fake.mkdir()
    (fake / "openvino_genai.py").write_text(
        "import json, pathlib\n"
        "answers = iter(json.loads(pathlib.Path(r'%s').read_text()))\n"
        "class GenerationConfig: pass\n"
        "class LLMPipeline:\n"
        "    def __init__(self, model, device):\n"
        "        assert pathlib.Path(model).read_bytes()[:4] == b'GGUF'\n"
        "    def generate(self, prompt, config):\n"
        "        assert prompt.startswith('<|im_start|>user') and not config.do_sample\n"
        "        return next(answers)\n" % (tmp_path / "answers.json"),
        "utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(fake))
    found = tw.export(trained, "lora", format="gguf", to=tmp_path / "out", openvino=sys.executable)
    assert [c["consumer"] for c in found.record["checks"]][1] == "OpenVINO GenAI"
    assert found.record["not_checked"] == []
    assert not list((tmp_path / "out").glob(".*"))
    (fake / "openvino_genai.py").write_text(
        "class GenerationConfig: pass\n"
        "def LLMPipeline(*_): raise RuntimeError(\"Unsupported model architecture 'llama'\")\n",
        "utf-8",
    )
    found = tw.export(trained, "lora", format="gguf", to=tmp_path / "out", openvino=sys.executable)
    assert found.record["not_checked"] == ["OpenVINO GenAI does not read GGUF files of llama"]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match="OpenVINO GenAI does not load it: ModuleNotFoundError"):
        tw.export(trained, "lora", format="gguf", to=tmp_path / "two", openvino=sys.executable)
    assert not (tmp_path / "two").exists()


def test_an_adapter_that_was_changed_is_not_exported(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(trained, copy)
    path = store.runs(copy)[-1].model("lora") / "adapter_model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(StorageError, match="is not what was measured"):
        tw.export(copy, "lora")


def refused(tuneworthy: Any, *arguments: str) -> tuple[str, str]:  # noqa: F811
    outcome = tuneworthy("export", *arguments)
    return outcome.refusal


def test_what_cannot_be_exported_is_said_at_once(
    tuneworthy: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    folder = projects.write(tmp_path / "project", projects.rows(), arms=["few-shot", "lora"])
    tw.decide(folder)
    cases = {
        ("few-shot", "project"): (
            "ARM: few-shot has no weights of its own to export: it is fake with what stands in "
            "arms/few-shot/fit.json",
            "export a trained arm, such as lora",
        ),
        ("lora", "project"): (
            "base: the base fake has no weights, so there is nothing to export",
            "tuneworthy retune --base smollm2-135m-instruct",
        ),
        ("full", "project"): ("project: full is not fitted here", "tuneworthy train full project"),
        ("lroa", "project"): (
            "ARM: no arm is called 'lroa'",
            "known arms: zero-shot, system-prompt, constrained, few-shot, rag, linear, lora, full, "
            "few-shot+lora, rag+lora",
        ),
        ("lora", "project", "--format", "onnx"): (
            "--format: no format is called 'onnx'",
            "formats: adapter, merged, gguf, ollama",
        ),
        ("lora", "project", "--format", "gguf", "--precision", "q4_k"): (
            "--precision: gguf is not written in 'q4_k'",
            "gguf comes in: float16, bfloat16, float32, q8_0",
        ),
    }
    before = sorted(folder.rglob("*"))
    for arguments, wanted in cases.items():
        assert refused(tuneworthy, *arguments) == wanted
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_export_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="is there already and is no export"):
        tw.export(trained, "lora", to=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_all_weights_are_no_adapter(tmp_path: Path) -> None:
    folder = projects.write(tmp_path / "project", projects.rows(), arms=["zero-shot", "full"])
    run = store.RunFolder(tw.decide(folder).folder)
    config = store.read_json(run.config)
    store.write_json(run.config, {**config, "base": {**config["base"], "name": "big"}})
    with pytest.raises(ProjectError, match="full has all weights of its own and is no adapter"):
        tw.export(folder, "full")
