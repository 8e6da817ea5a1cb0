"""Rows -> train, dev and test; rows that belong together never straddle two of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tuneworthy.data.checks import Finding, finding, plural
from tuneworthy.data.duplicates import Clusters, near_duplicate_clusters
from tuneworthy.errors import DataError
from tuneworthy.store import sha256_text
from tuneworthy.types import Example, SplitName

SMALLEST_SPLIT = 20
OVERSHOOT = 1.2
"""A split takes no cluster that would make it larger than this times what was asked for."""

Wanted = int | float | None | Sequence[Example]
"""How many rows (int), which share of them (float), the default (None), or the rows themselves."""

_Pools = dict[SplitName, list[Example]]


@dataclass(frozen=True)
class Splits:
    """The kept rows, each with its cluster."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]

    def items(self) -> list[tuple[SplitName, tuple[Example, ...]]]:
        return [("train", self.train), ("dev", self.dev), ("test", self.test)]


@dataclass(frozen=True)
class Drop:
    """Why a row is in no split."""

    kind: Literal["leak", "not-needed"]
    reason: str


@dataclass(frozen=True)
class Division:
    """`dropped` is by row id."""

    splits: Splits
    dropped: dict[str, Drop]
    findings: list[Finding]


def split(
    rows: Sequence[Example],
    *,
    test: Wanted = None,
    dev: Wanted = None,
    train: int | None = None,
    seed: int = 0,
    where: str = "data.examples",
    lost: Mapping[str, int] | None = None,
) -> Division:
    """Divide rows with different ids by cluster: no group and no near duplicates straddle.

    A row's cluster is its group, or without groups its near duplicates. Clusters go in the
    order of a seeded hash of their contents to test, then dev, then train, so that rows added
    later move few others. By default test gets 20 % of the rows (20 to 200) and dev 10 % (20 to
    100). `train` caps the training rows. A row that has a near duplicate in another split (in
    another group, or where test or dev are given rows) is a leak and leaves the lesser split;
    joining whole groups by such rows would leave too few clusters to measure anything.

    `where` the rows came from and how many were `lost` before, by reason, are for errors.
    Raises DataError if a split would have fewer than 20 rows.
    """
    sizes = _sizes(len(rows), test, dev, train)
    pools, near = _clustered_pools(rows, test, dev)
    everything = [row for pool in pools.values() for row in pool]
    alike = {row.id: number for row, number in zip(everything, near.numbers, strict=True)}

    def leaks() -> dict[str, Drop]:
        equal = _drop_leaks(pools, "nearly equals", lambda row: alike[row.id])
        return equal | _drop_leaks(pools, "is of the group of", lambda row: row.cluster)

    dropped = leaks()
    usable = len(pools["train"])
    needed = sum(sizes.values()) + SMALLEST_SPLIT
    if usable < needed:
        leaked = sum(row.id in dropped for row in rows)
        raise _too_few(where, usable, {**(lost or {}), "leak": leaked}, sizes)
    rest = _by_hash(pools["train"], seed)
    for name, size in sizes.items():
        pools[name] = _take(rest, size)
    pools["train"] = [row for cluster in rest for row in cluster]
    _check_pools(pools, where)
    dropped |= leaks()
    _check_pools(pools, where)
    if train is not None:
        dropped |= _cap(pools, train, seed)

    place = {row.id: position for position, row in enumerate(everything)}
    ordered = {n: tuple(sorted(pool, key=lambda row: place[row.id])) for n, pool in pools.items()}
    return Division(
        Splits(ordered["train"], ordered["dev"], ordered["test"]),
        dropped,
        _findings(everything, near),
    )


def _sizes(rows: int, test: Wanted, dev: Wanted, train: int | None) -> dict[SplitName, int]:
    """Rows to carve out for test and dev, where they are not given."""
    sizes: dict[SplitName, int] = {}
    wanted: tuple[tuple[SplitName, Wanted, float, int], ...] = (
        ("test", test, 0.2, 200),
        ("dev", dev, 0.1, 100),
    )
    for name, size, share, most in wanted:
        if size is None:
            sizes[name] = min(max(round(share * rows), SMALLEST_SPLIT), most)
        elif isinstance(size, int):
            _check_size(name, size, f"{size}")
            sizes[name] = size
        elif isinstance(size, float):
            sizes[name] = round(size * rows)
            # With too few rows for any split the rows are the trouble, not the share.
            if rows >= 3 * SMALLEST_SPLIT:
                _check_size(name, sizes[name], f"{size} of {plural(rows, 'row')} is {sizes[name]}")
        else:
            _check_size(name, len(size), f"{plural(len(size), 'usable row')} in its own file")
    if train is not None:
        _check_size("train", train, f"{train}")
    return {name: max(size, SMALLEST_SPLIT) for name, size in sizes.items()}


def _check_size(name: str, size: int, words: str) -> None:
    if size < SMALLEST_SPLIT:
        raise DataError(
            f"{words}: a split needs at least {SMALLEST_SPLIT} rows",
            where=f"data.{name}",
            hint=f"write `{name}: {SMALLEST_SPLIT}` or more under `data:` in tuneworthy.yaml",
        )


def _clustered_pools(rows: Sequence[Example], test: Wanted, dev: Wanted) -> tuple[_Pools, Clusters]:
    """Given test rows, given dev rows, and all others under train; each with its cluster.

    A cluster is named after the smallest id in it. System turns are left out of the comparison:
    rows do not resemble each other because they have the same instructions.
    """
    pools: _Pools = {
        "test": list(test) if isinstance(test, Sequence) else [],
        "dev": list(dev) if isinstance(dev, Sequence) else [],
        "train": list(rows),
    }
    everything = [row for pool in pools.values() for row in pool]
    texts = [
        "\n".join(turn.content for turn in row.prompt if turn.role != "system")
        for row in everything
    ]
    near = near_duplicate_clusters(texts)
    labels = [
        number if row.group is None else row.group
        for number, row in zip(near.numbers, everything, strict=True)
    ]
    smallest: dict[int | str, str] = {}
    for label, row in zip(labels, everything, strict=True):
        smallest[label] = min(smallest.get(label, row.id), row.id)
    names = iter([f"c{smallest[label].removeprefix('r')}" for label in labels])
    for name, pool in pools.items():
        pools[name] = [replace(row, cluster=next(names)) for row in pool]
    return pools, near


def _drop_leaks(pools: _Pools, why: str, key: Callable[[Example], Hashable]) -> dict[str, Drop]:
    """Take from dev what test has, and from train what either has, by a key of the row."""
    dropped: dict[str, Drop] = {}
    held: dict[Hashable, str] = {}
    for name in ("test", "dev", "train"):
        kept = []
        for row in pools[name]:
            twin = held.get(key(row))
            if twin is None:
                kept.append(row)
            else:
                dropped[row.id] = Drop("leak", f"{why} {twin}")
        held.update((key(row), f"{row.source} ({name})") for row in kept)
        pools[name] = kept
    return dropped


def _by_hash(rows: Sequence[Example], seed: int) -> list[list[Example]]:
    """The clusters, in the order of a hash of their names: a row more moves few of them."""
    clusters = defaultdict(list)
    for row in rows:
        clusters[row.cluster].append(row)
    return [clusters[name] for name in sorted(clusters, key=lambda name: _hash(name, seed))]


def _hash(name: str, seed: int) -> str:
    return sha256_text(f"{seed}:{name}")


def _take(clusters: list[list[Example]], target: int) -> list[Example]:
    """Remove about `target` rows from the front of the clusters, whole clusters only.

    Clusters of up to a fifth of the target come first: a few large ones would make a split of
    many rows and few independent observations. If none is left that fits, the smallest one is
    taken as long as a fifth is wanting.
    """
    taken: list[Example] = []
    for largest in (target / 5, target * OVERSHOOT):
        for cluster in list(clusters):
            room = target * OVERSHOOT - len(taken)
            if len(taken) < target and len(cluster) <= min(largest, room):
                taken += cluster
                clusters.remove(cluster)
    if clusters and len(taken) < max(target * 0.8, SMALLEST_SPLIT):
        smallest = min(clusters, key=len)
        clusters.remove(smallest)
        taken += smallest
    return taken


def _cap(pools: _Pools, most: int, seed: int) -> dict[str, Drop]:
    by_hash = sorted(pools["train"], key=lambda row: _hash(row.id, seed))
    pools["train"] = by_hash[:most]
    return {row.id: Drop("not-needed", f"data.train is {most:,}") for row in by_hash[most:]}


def _too_few(
    where: str, usable: int, lost: Mapping[str, int], sizes: Mapping[SplitName, int]
) -> DataError:
    why = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
    read = f" of {usable + sum(lost.values()):,} ({why})" if why else ""
    parts = [*(f"{size:,} {name}" for name, size in sizes.items()), f"{SMALLEST_SPLIT} training"]
    needed = sum(sizes.values()) + SMALLEST_SPLIT
    lower = any(size > SMALLEST_SPLIT for size in sizes.values())
    return DataError(
        f"{plural(usable, 'usable row')}{read}: too few, at least {needed:,} are needed "
        f"({', '.join(parts)})",
        where=where,
        hint=f"add {needed - usable:,} or more different rows"
        + (", or lower data.test and data.dev" if lower else ""),
    )


def _check_pools(pools: _Pools, where: str) -> None:
    """Raise DataError where clusters are so large that a split has got fewer than 20 rows."""
    for name, pool in pools.items():
        if len(pool) >= SMALLEST_SPLIT:
            continue
        sizes: Counter[str] = Counter()
        for rows in pools.values():
            sizes.update(row.cluster for row in rows)
        raise DataError(
            f"{plural(len(pool), 'row')} left for {name}, at least {SMALLEST_SPLIT} are needed: "
            f"rows of one group and near duplicates stay together, which makes "
            f"{plural(len(sizes), 'cluster')}, the largest of {plural(max(sizes.values()), 'row')}",
            where=where,
            hint="add rows that differ more, or set data.group_by to a field with more values",
        )


def _findings(rows: Sequence[Example], near: Clusters) -> list[Finding]:
    found = []
    copies = defaultdict(list)
    for number, row in zip(near.numbers, rows, strict=True):
        copies[number].append(row.source)
    alike = [sources for sources in copies.values() if len(sources) > 1]
    if alike:
        sources = [source for one in alike for source in one]
        text = (
            f"{plural(len(sources), 'row')} in {plural(len(alike), 'set')} of nearly equal "
            "prompts: no set straddles a split"
        )
        found.append(finding("near-duplicates", "info", text, sources))
    for part in near.divided:
        text = (
            f"{plural(len(part.positions), 'row')} of {len(rows):,} have prompts so alike that they "
            f"would be one cluster: taken for a template and divided by {part.by}"
        )
        sources = [rows[position].source for position in part.positions]
        found.append(finding("template", "info", text, sources))
    return found
