"""What each stage costs, in core-milliseconds an image: the stages' own functions, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from service_rig import ROOT, WEIGHTS, cpu_s

if TYPE_CHECKING:
    from service_rig import Rig

_T = TypeVar("_T")
_R = TypeVar("_R")
#: So many images go through each stage before the next begins.
_IMAGES, _BATCH = 96, 16


class _Clock:
    """CPU time of this process, and of the servers, by stage."""

    def __init__(self, servers: dict[str, int]) -> None:
        import psutil

        self._servers = {name: [psutil.Process(pid)] for name, pid in servers.items()}
        self.core_ms: dict[str, dict[str, float]] = {}

    def each(self, stage: str, run: Callable[[_T], _R], items: Sequence[_T], images: int = _IMAGES) -> list[_R]:
        """Take all items through a stage."""
        run(items[0])
        before, cpu = {name: cpu_s(found) for name, found in self._servers.items()}, time.process_time()
        answers = [run(item) for item in items]
        spent = {"worker": 1000 * (time.process_time() - cpu) / images}
        for name, found in self._servers.items():
            spent[name] = 1000 * (cpu_s(found) - before[name]) / images
        self.core_ms[stage] = spent
        return answers


def print_stages(rig: Rig, network: str) -> dict[str, dict[str, float]]:
    """Measure in a process of its own, set up as a worker with one thread is, and print a table."""
    servers = {name: found[0].pid for name, found in rig.servers().items()}
    command = (sys.executable, "-W", "ignore", __file__, network, json.dumps(servers), json.dumps(rig.uris[:_IMAGES]))
    environment = rig.environment({"OMP_NUM_THREADS": "1"})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    click.echo(f"\n{network}, core-ms an image by stage, one thread, batches of {_BATCH}")
    names = list(dict.fromkeys(name for spent in found.values() for name in spent))
    click.echo(f"{'':<20}" + "".join(f"{name:>9}" for name in names))
    for stage, spent in found.items():
        click.echo(f"{stage:<20}" + "".join(f"{spent.get(name, 0.0):>9.2f}" for name in names))
    sums = {name: sum(spent.get(name, 0.0) for spent in found.values()) for name in names}
    click.echo(f"{'together':<20}" + "".join(f"{sums[name]:>9.2f}" for name in names))
    return found


def measure(network_name: str, servers: dict[str, int], uris: list[str]) -> dict[str, dict[str, float]]:
    from producer.client.client import Client
    from producer.jobs.fetch.fetcher import Fetcher
    from producer.jobs.fetch.policy import FetchPolicy
    from producer.jobs.model import keys
    from producer.jobs.model.items import Chunk, Item, uri_line
    from producer.jobs.model.settings import Connections, read
    from producer.jobs.model.spec import JobSpec
    from producer.jobs.store.bucket import Storage
    from worker.chunks.chunk import ChunkContext, ImageTask
    from worker.chunks.lease import Lease
    from worker.chunks.outcome import done
    from worker.device.batches import explain_classes, open_device
    from worker.models import networks
    from worker.pictures import decode, geometry, render

    open_device("cpu")
    network = networks.load(network_name, WEIGHTS[network_name])
    storage = Storage.from_settings(read(Connections))
    fetcher, clock = Fetcher(FetchPolicy(), storage.client, object_data=storage.object_data), _Clock(servers)
    images = len(uris)

    def decoded(data: bytes) -> Any:
        return geometry.fit(decode.decode(data), network.size, "squash", network.resize_px)[0]

    def explained(batch: list[Any]) -> list[Any]:
        return explain_classes(network, batch, [None] * len(batch)).answers()

    def drawn(pair: tuple[Any, Any]) -> dict[str, Any]:
        picture, (answer,) = pair
        heat, _flat = render.heat_of(answer.maps, network.size)
        return render.draw(picture, heat, answer.guided)

    files = clock.each("fetch", fetcher.fetch, uris)
    pictures = clock.each("decode", decoded, files)
    batches = [pictures[first : first + _BATCH] for first in range(0, images, _BATCH)]
    answers = [each for batch in clock.each("explain", explained, batches) for each in batch]
    drawings = clock.each("render", drawn, list(zip(pictures, answers, strict=True)))
    encoded = clock.each("encode", lambda found: {kind: render.encode(p) for kind, p in found.items()}, drawings)

    def uploaded(pair: tuple[int, dict[str, bytes]]) -> dict[str, str]:
        names = {kind: keys.picture("stages", "bench", pair[0], f"{kind}.jpg") for kind in pair[1]}
        for kind, key in names.items():
            storage.put(key, pair[1][kind])
        return names

    objects = clock.each("upload", uploaded, list(enumerate(encoded)))
    table, spec = Client.from_env().table, JobSpec(network=network_name, chunk_size=images)
    job = f"stages-{network_name}"
    table.create(job, spec, lifetime_s=60)
    table.add_chunk(job, Chunk.compress(0, [uri_line(uri) for uri in uris]))
    claim = table.claim(job, 0, spec, claim_id="stages", lease_s=30)
    assert claim is not None

    chunk = ChunkContext(claim, network, Lease(table, claim, claim_id="stages", lease_s=30), order=0, since=0.0)

    def line(number: int) -> str:
        task = ImageTask(chunk, number, Item(uri=uris[number]), explained=answers[number])
        return done(task, [False], objects[number], {}).result.model_dump_json(exclude_none=True)

    manifest = "\n".join(clock.each("result", line, range(images))).encode()

    def committed(_: int) -> None:
        for first in range(0, images, _BATCH):
            table.renew(claim, lease_s=30, marked=range(first, first + _BATCH))
        storage.put(keys.manifest("stages", "bench", 0, 0, 0, 0), manifest)
        classes = dict.fromkeys(range(images), "281 tabby")
        table.commit(claim, done=classes, failed=[], lease_s=30, seconds={"explain": 1.0})

    clock.each("manifest and commit", committed, [0] * 10, 10 * images)
    return clock.core_ms


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
