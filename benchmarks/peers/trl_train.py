"""One training run with TRL, in an environment that knows nothing of Tuneworthy.

Started with the path of a job (JSON); tells steps and evaluations in lines `@ {…}` on stdout. A
screening run takes a few micro-batches of the very run that would be measured, short and long ones
in due proportion, and no gradient accumulation.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGE_SET = 50
"""How many batches transformers sorts by length at once, given a set of thousands of rows."""
EVALUATION_ROWS = 8


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def thinned(order: Sequence[int], lengths: Sequence[int], size: int, tokens: int) -> list[int]:
    """Micro-batches of `order` that hold about so many tokens, evenly spread over their sizes."""
    chunks = [order[i : i + size] for i in range(0, len(order), size)]
    weights = [sum(lengths[i] for i in chunk) for chunk in chunks]
    count = min(len(chunks), max(1, round(tokens * len(chunks) / sum(weights))))
    ranked = sorted(range(len(chunks)), key=lambda c: weights[c])
    taken = sorted(ranked[int((i + 0.5) * len(chunks) / count)] for i in range(count))
    return [i for c in taken for i in chunks[c]]


def chosen(job: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order of training; they come shuffled. To screen, a few of them."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices
    from trl import pack_dataset

    tokens = job["screen_tokens"]
    if tokens and job["arrangement"] == "packed":
        packs = pack_dataset(dataset(rows), job["pack_tokens"])
        fills = [sum(lengths) for lengths in packs["seq_lengths"]]
        taken = thinned(range(len(fills)), fills, 1, tokens)
        return [row for i in taken for row in unpacked(packs[i])]
    lengths = [len(row["ids"]) for row in rows]
    order = list(range(len(rows)))
    if job["arrangement"] == "grouped":
        # Measured: sorted as it would be within a large set of rows, which is to its advantage.
        # Trained to a loss: sorted as it is with this set.
        pool = None if job.get("target") is not None else LARGE_SET
        seed = torch.Generator().manual_seed(0)
        order = get_length_grouped_indices(lengths, job["batch_rows"], pool, seed)
    if tokens:
        order = thinned(order, lengths, job["size"], tokens)
    return [rows[i] for i in order]


def unpacked(pack: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a pack."""
    rows, start = [], 0
    for length in pack["seq_lengths"]:
        part = slice(start, start + length)
        ids, mask = pack["input_ids"][part], pack["completion_mask"][part]
        rows.append({"ids": ids, "prompt_length": mask.index(1)})
        start += length
    return rows


def configuration(
    job: dict[str, Any], rows: Sequence[dict[str, Any]], folder: str, **more: Any
) -> Any:
    """Everything that TRL is told; with packs it makes as many steps as without."""
    from trl import SFTConfig, pack_dataset

    packed = job["arrangement"] == "packed"
    size, passes = job["size"], job["batch_rows"] // job["size"]
    if packed:
        # TRL flattens the packs of a forward pass into one sequence under a dense mask: one pack
        # at a time is the fastest here.
        packs = len(pack_dataset(dataset(rows), job["pack_tokens"]))
        size, passes = 1, math.ceil(packs / math.ceil(len(rows) / job["batch_rows"]))
    return SFTConfig(
        output_dir=folder,
        use_cpu=True,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=1 if job["screen_tokens"] else passes,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="random" if packed else "sequential",
        packing=packed,
        max_length=job["pack_tokens"] if packed else None,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=job["number_format"] == "autocast",
        logging_strategy="steps",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **({"num_train_epochs": 1} | more),
    )


def dataset(rows: Sequence[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "input_ids": row["ids"],
                "completion_mask": [int(i >= row["prompt_length"]) for i in range(len(row["ids"]))],
            }
            for row in rows
        ]
    )


def mean_loss(model: Any, rows: Sequence[dict[str, Any]], autocast: bool) -> float:
    """Mean negative log-likelihood (nats) per label token: the definition that we use too."""
    import torch

    causal, total, labels = model.get_base_model(), 0.0, 0
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for start in range(0, len(rows), EVALUATION_ROWS):
            batch = rows[start : start + EVALUATION_ROWS]
            longest = max(len(row["ids"]) for row in batch)
            # Padded on the right, where a causal model's real tokens do not look.
            ids = [row["ids"] + [0] * (longest - len(row["ids"])) for row in batch]
            hidden = causal.get_decoder()(input_ids=torch.tensor(ids)).last_hidden_state
            for row, states in zip(batch, hidden):
                first, last = row["prompt_length"], len(row["ids"])
                logits = causal.get_output_embeddings()(states[first - 1 : last - 1]).float()
                wanted = torch.tensor(row["ids"][first:])
                total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
                labels += last - first
    model.train()
    return total / labels


def recorder(job: dict[str, Any], dev: Sequence[dict[str, Any]]) -> Any:
    """A callback that tells each step, evaluates between steps, and stops where it is enough."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.tokens = self.all_tokens = 0
            self.clock = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            seconds = time.perf_counter() - self.began
            self.clock += seconds
            self.all_tokens += self.tokens
            step = state.global_step
            event = {"step": step, "steps": state.max_steps, "seconds": seconds}
            event["tokens"], self.tokens = self.tokens, 0
            if self.all_tokens / self.clock < job.get("give_up_below", 0.0):
                control.should_training_stop = True
            target = job.get("target")
            if target is not None:
                if step % job["dev_every"] == 0 or step == state.max_steps:
                    event["dev_loss"] = mean_loss(model, dev, job["number_format"] == "autocast")
                reached = event.get("dev_loss", target + 1) <= target
                if reached or self.clock > job["limit_seconds"]:
                    control.should_training_stop = True
            tell(event)

    return Recorder()


def main(path: str) -> None:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        """Counts real tokens: those that are not padding."""

        counter: Any = None

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self.counter:
                mask = inputs.get("attention_mask")
                tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
                self.counter.tokens += tokens
            return super().training_step(model, inputs, *args, **kwargs)

    job = json.loads(Path(path).read_text("utf-8"))
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    dtype = torch.bfloat16 if job["number_format"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    train = chosen(job, rows["train"])
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"
    )
    with tempfile.TemporaryDirectory() as folder:
        # Warmed up by steps of one forward pass each: more of them in a step would repeat it.
        steps = {"num_train_epochs": 2, "max_steps": 1 if job["screen_tokens"] else 2}
        warm = Trainer(
            model=model,
            args=configuration({**job, "screen_tokens": 1}, rows["warm"], folder, **steps),
            train_dataset=dataset(rows["warm"]),
            processing_class=tokenizer,
            peft_config=adapter,
        )
        warm.train()
        with torch.no_grad():  # back to where it began: an adapter that changes nothing
            for name, parameter in warm.model.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        record = recorder(job, rows["dev"])
        trainer = Trainer(
            model=warm.model,
            args=configuration(job, train, folder),
            train_dataset=dataset(train),
            processing_class=tokenizer,
            callbacks=[record],
        )
        trainer.counter = record
        before = None
        if job.get("target") is not None:
            before = mean_loss(warm.model, rows["dev"], job["number_format"] == "autocast")
        trainer.train()
    tell(
        {
            "done": {
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "threads": torch.get_num_threads(),
                "dev_loss_before": before,
            }
        }
    )


if __name__ == "__main__":
    main(sys.argv[1])
