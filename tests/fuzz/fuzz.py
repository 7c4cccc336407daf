"""Throw broken inputs at everything that reads what strangers write: `make fuzz`.

Each target runs in a process of its own, whose death is a finding. Each input comes of the target's name and its
number: `fuzz.py PNG --first 1234 --inputs 1` makes one again, and `--write FILE` writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz_mutations import mutated
from fuzz_targets import NAMES, Target, target

FOLDER = Path(__file__).parent
STATUS = Path("/proc/self/status")
HEAD = f"{'target':14} {'inputs':>8} {'slowest':>9} {'input':>8} {'peak':>8} {'input':>8}  verdicts"


def explore(found: Target, first: int, inputs: int, seconds: float, write: Path | None = None) -> dict[str, Any]:
    """Run a target in this process.

    Args:
        found: What is fuzzed.
        first: The first input's number.
        inputs: How many.
        seconds: Of this process's processor time, whatever is left; 0 for all.
        write: Where the last input is written before it is run.
    """
    found.run(found.seeds[0])  # what is loaded once does not count
    before = peak = _peak_bytes()
    verdicts: Counter[str] = Counter()
    slowest, slowest_at, peak_at, findings = 0.0, first, first, []
    begun = time.process_time()
    number = first
    for number in range(first, first + inputs):
        data = mutated(found.seeds, found.format, random.Random(f"{found.name} {number}"))
        if write is not None:
            write.write_bytes(data)
        start = time.process_time()
        try:
            verdicts[found.run(data)] += 1
        except Exception as error:
            verdicts["raised"] += 1
            findings.append(f"input {number} raised {type(error).__name__}: {error}"[:300])
        took = time.process_time() - start
        if took > slowest:
            slowest, slowest_at = took, number
        if took > found.most_s:
            findings.append(f"input {number} took {took:.1f} s")
        if (now := _peak_bytes()) > peak:
            peak, peak_at = now, number
        if seconds and time.process_time() - begun > seconds:
            break
    if peak - before > found.most_bytes:
        findings.append(f"input {peak_at} took {(peak - before) / 1e6:.0f} MB")
    return {
        "target": found.name, "inputs": number + 1 - first, "slowest_s": slowest, "slowest": slowest_at,
        "peak_bytes": peak - before, "peak": peak_at, "verdicts": dict(verdicts.most_common()),
        "findings": findings[:9],
    }  # fmt: skip


def _peak_bytes() -> int:
    # Where there is no such file: `ru_maxrss` begins with what the process that started this one had.
    if STATUS.exists():
        return next(int(row.split()[1]) for row in STATUS.read_text().splitlines() if row.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(names: Sequence[str], inputs: int, seconds: float = 0, first: int = 0) -> list[dict[str, Any]]:
    """Run targets in one process of their own; its death, and whatever it prints, are findings.

    Returns:
        A summary of each.
    """
    command = [sys.executable, "-W", "error", str(FOLDER / "fuzz.py"), *names, "--json"]
    command += ["--inputs", str(inputs), "--seconds", str(seconds), "--first", str(first)]
    # What is fuzzed is what lies beside, whatever is installed.
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    summaries: list[dict[str, Any]] = [json.loads(row) for row in run.stdout.splitlines() if row.startswith("{")]
    for name in names[len(summaries) :]:
        finding = f"the process ended with {run.returncode}: use --write to find the input"
        summaries.append({
            "target": name, "inputs": 0, "slowest_s": 0.0, "slowest": first, "peak_bytes": 0, "peak": first,
            "verdicts": {}, "findings": [finding],
        })  # fmt: skip
    if run.stderr:
        summaries[-1]["findings"].append(f"printed: {run.stderr[-300:]}")
    return summaries


def line(summary: dict[str, Any]) -> str:
    """A row below `HEAD`."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items())
    return (
        f"{summary['target']:14} {summary['inputs']:8} {summary['slowest_s'] * 1000:6.0f} ms {summary['slowest']:8} "
        f"{summary['peak_bytes'] / 1e6:5.0f} MB {summary['peak']:8}  {verdicts}"
    )


def main() -> int:
    """Fuzz what is named, or everything, and print a table."""
    parser = argparse.ArgumentParser(description="Throw broken inputs at what reads them.")
    parser.add_argument("targets", nargs="*", help="such as PNG; everything, where none is named")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target")
    parser.add_argument("--seconds", type=float, default=0, help="at most so long for each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--write", type=Path, help="run here, and write each input to this file before it is run")
    parser.add_argument("--json", action="store_true", help="run them here, and print what came out of it")
    given = parser.parse_args()
    names = given.targets or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.json or given.write:
        for name in names:
            print(json.dumps(explore(target(name), given.first, given.inputs, given.seconds, given.write)), flush=True)
        return 0
    print(HEAD)
    failed = False
    for name in names:
        (summary,) = in_child([name], given.inputs, given.seconds, given.first)
        print(line(summary), *(f"  ! {finding}" for finding in summary["findings"]), sep="\n", flush=True)
        failed |= bool(summary["findings"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
