"""How far a run on shards is."""

from __future__ import annotations

from typing import Any

from starfc.shards.run import ShardRun
from starfc.shards.store import Store
from starfc.shards.tasks import kind_of


def status_of(store: Store) -> dict[str, Any]:
    """Return the manifest and the stages of a run; of each its tasks, their seconds, peak memory and bytes read.

    Raises
    ------
    InputError
        There is no run in this store.
    """
    run = ShardRun.open(store)
    stages = []
    for name in store.stages():
        if kind_of(name) is None:
            continue
        records = [store.record(name, index) for index in sorted(run.finished(name))]
        stages.append(
            {
                "stage": name,
                "tasks": run.count(name),
                "finished": len(records),
                "seconds": sum(record.get("seconds", 0) for record in records),
                "peak_rss_mb": max((record.get("peak_rss_mb", 0) for record in records), default=0),
                "bytes_read": sum(record.get("bytes_read", 0) for record in records),
                "at": max((record.get("at", 0) for record in records), default=0),
            }
        )
    stages.sort(key=lambda stage: stage["at"] or float("inf"))
    return {"store": store.url, "manifest": vars(run.manifest), "stages": stages}


def status_text(record: dict[str, Any]) -> str:
    """Return the record of :func:`status_of` as a table."""
    manifest = record["manifest"]
    lines = [
        f"{record['store']}: {manifest['n']:,} rows in shards of {manifest['shard_rows']:,}",
        f"{'stage':<12}{'tasks':>12}{'seconds':>12}{'peak MB':>10}{'read MB':>10}",
    ]
    for stage in record["stages"]:
        done = f"{stage['finished']}/{stage['tasks']}"
        lines.append(
            f"{stage['stage']:<12}{done:>12}{stage['seconds']:>12.1f}{stage['peak_rss_mb']:>10.0f}"
            f"{stage['bytes_read'] / 2**20:>10.0f}"
        )
    return "\n".join(lines)
