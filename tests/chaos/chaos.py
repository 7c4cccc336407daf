"""Cause every fault we know of on real workers, and hold every job to the promise: nothing lost, nothing doubled.

PYTHONPATH=.:tests/support python tests/chaos/chaos.py [--seed 7] [--only Redis] [--images 96]
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import click

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from chaos_faults import FAULTS
    from chaos_rig import Rig, Row

_HEADS = ("fault", "injected", "images", "lost", "doubled", "handed out again", "recovery", "took")


def run(directory: Path, names: list[str], *, images: int, seed: int, quiet: bool = False) -> list[Row]:
    """Cause the named faults one after the other, on the same servers and workers."""
    rows = []
    with Rig(directory, images=images, seed=seed) as rig:
        rig.take_reference()
        for name in names:
            row = Row(name)
            started = time.monotonic()
            try:
                FAULTS[name](rig, row)
            except Exception as error:
                row.problems.append(f"{type(error).__name__}: {error}")
            finally:
                rig.redis.passing()
                rig.s3.passing()
            row.seconds = time.monotonic() - started
            rows.append(row)
            if not quiet:
                click.echo(line(row))
                for problem in row.problems[:20]:
                    click.echo(f"    {problem}")
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    cells = (row.times, row.images, row.lost, row.doubled, row.republished)
    words = (*map(str, cells), f"{row.recovery_s:.1f} s", f"{row.seconds:.0f} s")
    return f"{row.fault:<38}" + "".join(f"{word:>10}" for word in words) + ("   BROKEN" if row.problems else "")


@click.command()
@click.option("--seed", default=int(time.time()) % 100_000, show_default="the time")
@click.option("--only", multiple=True, help="Faults whose name holds this.")
@click.option("--images", default=96, show_default=True)
def main(seed: int, only: tuple[str, ...], images: int) -> None:
    """Print a table; exit with 1 when a promise was broken."""
    names = [name for name in FAULTS if not only or any(word in name for word in only)]
    click.echo(f"seed {seed}; {images} images a job, two workers pinned to a core each; lease 2 s, interval 0.5 s")
    click.echo(f"{_HEADS[0]:<38}" + "".join(f"{head.replace('handed out again', 'again'):>10}" for head in _HEADS[1:]))
    with tempfile.TemporaryDirectory(prefix="gradcam-chaos-") as folder:
        rows = run(Path(folder), names, images=images, seed=seed)
        broken = [row for row in rows if row.problems or row.lost or row.doubled]
        if broken:
            log = Path(folder) / "workers.log"
            kept = Path("chaos-workers.log")
            kept.write_bytes(log.read_bytes())
            click.echo(f"the workers' log: {kept}")
    click.echo(
        f"{sum(row.times for row in rows)} faults, {sum(row.images for row in rows)} images: "
        f"lost {sum(row.lost for row in rows)}, doubled {sum(row.doubled for row in rows)}, "
        f"recovery {max(row.recovery_s for row in rows):.1f} s at most"
    )
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
