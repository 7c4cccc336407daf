"""The GPUs of this machine, as `nvidia-smi -L` lists them: the launcher makes no CUDA call and holds no context."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from producer.jobs.model.errors import UsageError, WorkerError
from producer.jobs.model.text import quoted

#: A driver that works answers within a second, or in some seconds where it has to load first.
ANSWERS_WITHIN_S = 30.0
#: Words in CUDA_VISIBLE_DEVICES that hide what follows.
_NONE = frozenset({"-1", "NoDevFiles"})
_GPU = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")
_MIG = re.compile(r"\s+MIG .*Device\s+(\d+): \(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True)
class Place:
    """What one process sees: a GPU, or one MIG instance of it."""

    #: The number that nvidia-smi gives it.
    gpu: int
    #: The value of CUDA_VISIBLE_DEVICES.
    uuid: str
    #: The number that nvidia-smi gives the instance in its GPU; None for the whole GPU.
    instance: int | None = None

    @property
    def name(self) -> str:
        """The part of a worker's name that says where it runs."""
        return f"gpu{self.gpu}" if self.instance is None else f"gpu{self.gpu}-mig{self.instance}"


@dataclass(frozen=True)
class Gpu:
    """One GPU and its MIG instances."""

    number: int
    uuid: str
    instances: tuple[Place, ...] = ()

    @property
    def places(self) -> tuple[Place, ...]:
        """Where processes can run: a divided GPU cannot be used as a whole."""
        return self.instances or (Place(self.number, self.uuid),)


def find_gpus(devices: str) -> list[Place]:
    """Find the GPUs that `devices` asks for, among those that CUDA_VISIBLE_DEVICES leaves.

    Args:
        devices: `auto` (all there are), `cpu`, `cuda` (all, at least one), `cuda:0,1`, or `cuda:0.1` for instance 1 of
            GPU 0. As for every CUDA program, `cuda:0` is the first one that CUDA_VISIBLE_DEVICES leaves.

    Returns:
        The places; none where processes run on the CPU.

    Raises:
        UsageError: The devices are written in a way that nobody understands.
        WorkerError: There is no such GPU, or the driver does not work.
    """
    if devices == "cpu":
        return []
    kind, colon, numbers = devices.partition(":")
    if kind not in {"auto", "cuda"} or (kind == "auto" and colon):
        raise UsageError(f"--devices {quoted(devices)} is not understood: use auto, cpu, cuda, cuda:0,1 or cuda:0.1")
    wanted = _numbers(numbers) if colon else []
    there = _visible()
    if kind == "auto":
        return there
    if not there:
        raise WorkerError(
            "there is no GPU (`nvidia-smi -L` lists none that CUDA_VISIBLE_DEVICES leaves): use --devices cpu, or "
            "install the driver"
        )
    chosen = [place for number in wanted for place in _numbered(there, *number)] if wanted else there
    return list(dict.fromkeys(chosen))


def _numbers(text: str) -> list[tuple[int, int | None]]:
    """Return pairs of a GPU and its instance; None in place of an instance that is not named."""
    if not re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)*", text):
        raise UsageError(f"--devices cuda:{text} is not understood: give numbers by commas, as cuda:0,1 or cuda:0.1")
    parts = [part.split(".") for part in text.split(",")]
    return [(int(gpu), int(instance[0]) if instance else None) for gpu, *instance in parts]


def _numbered(there: Sequence[Place], number: int, instance: int | None) -> list[Place]:
    gpus = list(dict.fromkeys(place.gpu for place in there))
    if number >= len(gpus):
        raise WorkerError(f"there is no GPU {number}: there are 0 to {len(gpus) - 1} (`nvidia-smi -L`)")
    places = [place for place in there if place.gpu == gpus[number]]
    if instance is None:
        return places
    found = [place for place in places if place.instance == instance]
    if not found:
        raise WorkerError(f"GPU {number} has no MIG instance {instance}: `nvidia-smi -L` lists those there are")
    return found


def _visible() -> list[Place]:
    """Return what a device plugin or an outer launcher left us by number or UUID; everything where nobody chose."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and not allowed.strip():
        return []
    gpus = installed()
    if allowed is None:
        return [place for gpu in gpus for place in gpu.places]
    return list(dict.fromkeys(place for entry in _entries(allowed) for place in _meant(gpus, entry)))


def _entries(allowed: str) -> Iterator[str]:
    for entry in (part.strip() for part in allowed.split(",")):
        if entry in _NONE:
            return
        if entry:
            yield entry


def _meant(gpus: Sequence[Gpu], entry: str) -> tuple[Place, ...]:
    """Return the places that an entry of CUDA_VISIBLE_DEVICES means; as in CUDA, the beginning of a UUID is enough."""
    if entry.isdigit():
        found = [gpu.places for gpu in gpus if gpu.number == int(entry)]
    elif entry.startswith("MIG-"):
        found = [(place,) for gpu in gpus for place in gpu.instances if place.uuid.startswith(entry)]
    else:
        found = [gpu.places for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    if len(found) != 1:
        raise WorkerError(
            f"CUDA_VISIBLE_DEVICES names {quoted(entry)}, which `nvidia-smi -L` does not list: unset it, "
            "or use --devices cpu"
        )
    return found[0]


def installed(within_s: float = ANSWERS_WITHIN_S) -> list[Gpu]:
    """List the GPUs of this machine; none where there is no driver.

    Args:
        within_s: How long the driver's tool may take.

    Raises:
        WorkerError: The driver's tool is there and fails; the error says what it said.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    # Into a file: we would wait for a pipe even when a tool that hangs in the driver cannot be killed.
    with tempfile.TemporaryFile() as output:
        try:
            tool = subprocess.Popen([program, "-L"], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            raise _broken(f"cannot be run ({error.strerror})") from None
        try:
            code = tool.wait(within_s)
        except subprocess.TimeoutExpired:
            tool.kill()
            with suppress(subprocess.TimeoutExpired):
                tool.wait(1)
            raise _broken(f"gave no answer within {within_s:g} s") from None
        output.seek(0)
        said = output.read().decode(errors="replace")
    if code != 0 or "Failed to initialize NVML" in said:
        raise _broken(f"said (exit code {code}): {' '.join(said.split())[:300]}")
    return _parsed(said)


def _broken(how: str) -> WorkerError:
    return WorkerError(f"the GPU driver does not work; to do without GPUs use --devices cpu. `nvidia-smi -L` {how}")


def _parsed(text: str) -> list[Gpu]:
    gpus: list[Gpu] = []
    for line in text.splitlines():
        if found := _GPU.match(line):
            gpus.append(Gpu(int(found[1]), found[2]))
        elif gpus and (found := _MIG.match(line)):
            gpu = gpus[-1]
            gpus[-1] = Gpu(gpu.number, gpu.uuid, (*gpu.instances, Place(gpu.number, found[2], int(found[1]))))
    return gpus
