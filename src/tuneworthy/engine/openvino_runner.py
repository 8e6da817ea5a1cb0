"""A job (JSON) answered by OpenVINO GenAI, in whatever environment has it: imports nothing of ours."""

import json
import sys
from pathlib import Path


def main() -> None:
    import openvino_genai  # type: ignore[import-not-found]

    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    pipeline = openvino_genai.LLMPipeline(job["model"], "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = job["max_tokens"]
    config.do_sample = False
    config.apply_chat_template = False  # the prompts carry it
    if job["stop"]:
        config.stop_strings = set(job["stop"])
    answers = [str(pipeline.generate(prompt, config)) for prompt in job["prompts"]]
    print("@ " + json.dumps({"answers": answers}), flush=True)


if __name__ == "__main__":
    main()
