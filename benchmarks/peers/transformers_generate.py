"""Answers and scores of transformers alone; told what to do by a job, see `_common`.

`mode` is `search` (which settings are the fastest, on one batch each), `measure` (all rows with one
setting) or `one at a time` (what a batch must not change).
"""

from __future__ import annotations

import copy
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SEARCH_TOKENS = 12
"""New tokens of a trial: the first comes after the prompt, the others tell what each one costs."""
CLOSE = 0.95
"""Of the best rate; below it a size is slow."""
Row = dict[str, Any]
Setting = dict[str, Any]
"""`number_format`, `way` and `size`, which is rows a batch.

Ways to answer: `dynamic` and `static` are caches of `generate`, `kept` is the dynamic one with the
shared beginning computed once, before. Ways to score: `pairs` of prompt and label, or the prompt's
keys and values `reused` for all of its labels.
"""
Try = Callable[[Setting], float]
Kept = tuple[list[int], Any]
"""Ids of a shared beginning, and the cache that holds its keys and values."""


def tell(event: dict[str, Any]) -> None:
    print("@", json.dumps(event), flush=True)


def search(
    try_: Try, number_formats: Sequence[str], ways: Sequence[str], sizes: Sequence[int]
) -> None:
    """Try settings, one thing after the other, each time going on with the best so far.

    Number formats in the first way and size; the other sizes, none that is larger than a slow one;
    the other ways; and larger sizes for another way that was better, since what it saves may be
    what made them slow.
    """
    rates: dict[tuple[str, str, int], float] = {}

    def measure(number_format: str, way: str, size: int) -> float:
        setting = {"number_format": number_format, "way": way, "size": size}
        rates[number_format, way, size] = try_(setting)
        return rates[number_format, way, size]

    def best() -> tuple[str, str, int]:
        return max(rates, key=rates.__getitem__)

    def climb(number_format: str, way: str, sizes: Sequence[int]) -> None:
        slow = math.inf
        for size in sizes:
            if size < slow and measure(number_format, way, size) < CLOSE * rates[best()]:
                slow = size

    for number_format in number_formats:
        measure(number_format, ways[0], sizes[0])
    number_format = best()[0]
    climb(number_format, ways[0], sizes[1:])
    size = best()[2]
    for way in ways[1:]:
        measure(number_format, way, size)
    way = best()[1]
    if way != ways[0]:
        climb(number_format, way, [larger for larger in sizes if larger > size])


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions of rows, sorted by length, `size` at a time."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i : i + size] for i in range(0, len(order), size)]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Length of what all prompts begin with, short of the whole of any."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class Contender:
    """The model in one number format, and what transformers can do with it."""

    def __init__(self, folder: str, number_format: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        dtype = getattr(torch, number_format)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None  # all rows get all their tokens
        self.model.generation_config.pad_token_id = 0

    def answer(
        self, prompts: Sequence[list[int]], way: str, tokens: int, kept: Kept | None, *watchers: Any
    ) -> list[list[int]]:
        """The ids that are answered to a batch of prompts, `tokens` each."""
        torch, front = self.torch, kept[0] if kept else []
        ids, mask = self._padded([prompt[len(front) :] for prompt in prompts])
        more: dict[str, Any] = {"cache_implementation": "static"} if way == "static" else {}
        if kept:
            # Padding stands between what is kept and what is the row's own.
            fronts = torch.tensor([front] * len(prompts))
            ids = torch.cat([fronts, ids], 1)
            mask = torch.cat([torch.ones_like(fronts), mask], 1)
            more["past_key_values"] = copy.deepcopy(kept[1])
            more["past_key_values"].batch_repeat_interleave(len(prompts))
        said = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            logits_processor=list(watchers),
            **more,
        )
        return said[:, ids.shape[1] :].tolist()

    def keep(self, prompts: Sequence[list[int]]) -> Kept:
        """What all prompts begin with, and its keys and values."""
        ids = prompts[0][: shared_length(prompts)]
        with self.torch.inference_mode():
            return ids, self.model(self.torch.tensor([ids]), logits_to_keep=1).past_key_values

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Ids and mask, padded on the left."""
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return self.torch.tensor(ids), self.torch.tensor(mask)

    def score(self, rows: Sequence[Row], way: str) -> list[list[float]]:
        """The log-probabilities of each row's labels."""
        with self.torch.inference_mode():
            flat = self._of_pairs(rows) if way == "pairs" else self._reusing(rows)
        count = len(rows[0]["labels"])
        return [flat[i : i + count] for i in range(0, len(flat), count)]

    def _of_pairs(self, rows: Sequence[Row]) -> list[float]:
        """Each label behind a prompt of its own, padded on the right, where nothing looks."""
        pairs = [(row["ids"], label) for row in rows for label in row["labels"]]
        longest = max(len(ids) + len(label) for ids, label in pairs) - 1
        inputs = [[*ids, *label[:-1]] for ids, label in pairs]
        padded = self.torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs])
        hidden = self.model.get_decoder()(padded, use_cache=False).last_hidden_state
        states = [
            row[len(ids) - 1 : len(ids) - 1 + len(label)]
            for row, (ids, label) in zip(hidden, pairs)
        ]
        return self._sums(states, [label for _, label in pairs])

    def _reusing(self, rows: Sequence[Row]) -> list[float]:
        """Prompts once, padded on the left; then all labels behind their keys and values."""
        torch, decoder = self.torch, self.model.get_decoder()
        ids, mask = self._padded([row["ids"] for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        found = decoder(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        labels = [label for row in rows for label in row["labels"]]
        count, longest = len(rows[0]["labels"]), max(map(len, labels)) - 1
        cache = found.past_key_values
        cache.batch_repeat_interleave(count)
        first = found.last_hidden_state[:, -1:].repeat_interleave(count, 0)
        behind = torch.tensor([label[:-1] + [0] * (longest - len(label) + 1) for label in labels])
        mask = torch.cat([mask.repeat_interleave(count, 0), torch.ones_like(behind)], 1)
        start = positions[:, -1].repeat_interleave(count)[:, None] + 1
        hidden = decoder(
            behind,
            attention_mask=mask,
            position_ids=start + torch.arange(longest),
            past_key_values=cache,
        ).last_hidden_state
        states = torch.cat([first, hidden], 1)
        return self._sums([row[: len(label)] for row, label in zip(states, labels)], labels)

    def _sums(self, states: Sequence[Any], labels: Sequence[list[int]]) -> list[float]:
        """Log-probabilities of labels; the output head sees no state but theirs."""
        logits = self.model.get_output_embeddings()(self.torch.cat(list(states))).float()
        wanted = self.torch.tensor([i for label in labels for i in label])
        losses = self.torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        return [-part.sum().item() for part in losses.split([len(label) for label in labels])]


def trial(model: Contender, rows: Sequence[Row], job: Row, setting: Setting) -> float:
    """Rate of one setting, from one batch of middling length: tokens/s, or rows/s of labels."""
    way, size = setting["way"], setting["size"]
    prompts = [row["ids"] for row in rows]
    groups = batches([len(ids) for ids in prompts], size)
    batch = groups[len(groups) // 2]
    if job["workload"] == "labels":
        start = time.perf_counter()
        model.score([rows[i] for i in batch], way)
        return len(batch) / (time.perf_counter() - start)
    times: list[float] = []

    def clock(ids: Any, logits: Any) -> Any:
        times.append(time.perf_counter())
        return logits

    kept = model.keep(prompts) if way == "kept" else None  # once for all batches: not counted here
    start = time.perf_counter()
    model.answer([prompts[i] for i in batch], way, SEARCH_TOKENS, kept, clock)
    each = (times[-1] - times[0]) / (len(times) - 1)
    return len(batch) * job["tokens"] / (times[0] - start + each * (job["tokens"] - 1))


def searched(job: Row, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """The rates of all trials."""
    models: dict[str, Contender] = {}
    trials: list[Setting] = []

    def try_(setting: Setting) -> float:
        number_format = setting["number_format"]
        if number_format not in models:
            models[number_format] = Contender(job["model"], number_format)
            trial(models[number_format], rows["warm"], job, {**setting, "size": len(rows["warm"])})
        rate = trial(models[number_format], rows["measured"], job, setting)
        trials.append({**setting, "rate": rate})
        tell({"trial": trials[-1]})
        return rate

    search(try_, job["number_formats"], job["ways"], job["sizes"])
    return {"trials": trials}


def measured(job: Row, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """All rows with one setting, and the seconds they took."""
    setting = job["setting"]
    model, way = Contender(job["model"], setting["number_format"]), setting["way"]

    def run(rows: list[Row]) -> list[Any]:
        prompts = [row["ids"] for row in rows]
        found: list[Any] = [None] * len(rows)
        kept = model.keep(prompts) if way == "kept" else None
        for batch in batches([len(ids) for ids in prompts], setting["size"]):
            if job["workload"] == "labels":
                said: list[Any] = model.score([rows[i] for i in batch], way)
            else:
                said = model.answer([prompts[i] for i in batch], way, job["tokens"], kept)
            for position, one in zip(batch, said):
                found[position] = one
            tell({"rows": sum(one is not None for one in found), "of": len(rows)})
        return found

    run(rows["warm"])
    start = time.perf_counter()
    found = run(rows["measured"])
    seconds = time.perf_counter() - start
    if job["workload"] == "labels":
        return {"seconds": seconds, "scores": found}
    return {"seconds": seconds, "answers": [["", len(ids)] for ids in found]}


def one_at_a_time(job: Row, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Texts and tokens of greedy answers up to a stop token, in float32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = Contender(job["model"], "float32")
    model.model.generation_config.eos_token_id = job["stop_ids"]
    answers = []
    start = time.perf_counter()
    for row in rows[job["part"]]:
        (ids,) = model.answer([row["ids"]], "dynamic", job["tokens"], None)
        said = [i for i in ids if i not in job["stop_ids"]]
        text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append([text, len(said)])
        if len(answers) % 10 == 0:
            tell({"rows": len(answers), "of": len(rows[job["part"]])})
    return {"seconds": time.perf_counter() - start, "answers": answers}


MODES = {"search": searched, "measure": measured, "one at a time": one_at_a_time}


def main(path: str) -> None:
    import torch

    job = json.loads(Path(path).read_text("utf-8"))
    rows = json.loads(Path(job["rows"]).read_text("utf-8"))
    done = MODES[job["mode"]](job, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tell({"done": {**done, "peak_mb": peak, "threads": torch.get_num_threads()}})


if __name__ == "__main__":
    main(sys.argv[1])
