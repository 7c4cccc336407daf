"""Let every pair of verbs race on small jobs, thousands of times, and hold each job to the promise.

PYTHONPATH=.:tests/support python tests/chaos/races.py [--seed 7] [--rounds 2000] [--first 0] [--lanes 2]
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import click

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import s3_servers
    from stacks import settings_of
    from verb_races import VERBS, race

    from producer.client.client import Client


@click.command()
@click.option("--seed", default=int(time.time()) % 100_000, show_default="the time")
@click.option("--rounds", default=1500, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first round: to see one again.")
def main(seed: int, rounds: int, first: int) -> None:
    """Print what was broken; exit with 1 when anything was."""
    click.echo(f"seed {seed}; {rounds} rounds of {len(VERBS) ** 2} pairs of verbs, two workers, a slow store")
    pairs: Counter[tuple[str, str]] = Counter()
    broken = 0
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="gradcam-races-") as folder,
        s3_servers.make_stack(Path(folder)) as stack,
        s3_servers.proxied(stack.s3) as proxy,
        settings_of(stack, GRADCAM_S3_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}"),
    ):
        for found in race(Client.from_env(), proxy, range(first, first + rounds), seed=seed):
            pairs[found.first, found.second] += 1
            if found.problems:
                broken += 1
                click.echo(f"round {found.number}: {found.first} and {found.second}, {found.began}, pack {found.pack}")
                for problem in found.problems[:5]:
                    click.echo(f"    {problem}")
    took_s = time.monotonic() - started
    click.echo(f"{rounds} rounds, {len(pairs)} pairs in {took_s:.0f} s: {broken} violations")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
