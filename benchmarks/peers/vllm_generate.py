"""Answers of vLLM, in an environment of its own; told what to do by a job, see `_common`."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

CONTEXT = 2048
SETTINGS = {
    # In this process: its peak memory is the contender's, and no core is reserved for a scheduler.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def main(path: str) -> None:
    os.environ.update(SETTINGS)
    import torch
    from vllm import LLM, SamplingParams

    job = json.loads(Path(path).read_text("utf-8"))
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    start = time.perf_counter()
    model = LLM(
        model=job["model"],
        dtype=job["number_format"],
        enforce_eager=job["eager"],
        enable_prefix_caching=True,
        max_model_len=CONTEXT,
        max_num_seqs=len(rows["measured"]),
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=job["tokens"], ignore_eos=True)

    def answers(part: str) -> list[Any]:
        prompts = [{"prompt_token_ids": row["ids"]} for row in rows[part]]
        found = model.generate(prompts, sampling, use_tqdm=False)
        return [[row.outputs[0].text, len(row.outputs[0].token_ids)] for row in found]

    started = time.perf_counter() - start
    answers("warm")
    start = time.perf_counter()
    found = answers("measured")
    tell(
        {
            "done": {
                "seconds": time.perf_counter() - start,
                "answers": found,
                "start_seconds": started,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
            }
        }
    )


if __name__ == "__main__":
    main(sys.argv[1])
