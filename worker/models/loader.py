"""The models that jobs ask for: fetched, checked, loaded once, kept while there is room."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import torch

from producer.jobs.fetch import addresses
from producer.jobs.model.digests import sha256_of
from producer.jobs.model.errors import (
    FetchError,
    GradcamError,
    JobError,
    NotHere,
    NothingThere,
    OtherWeights,
    WorkerError,
)
from producer.jobs.model.network_names import HF
from producer.jobs.model.redaction import redact, redact_text
from producer.jobs.model.spec import JobSpec
from worker import metrics
from worker.models import bundles, memory, networks
from worker.models.as_asked import as_asked
from worker.models.cache import ModelCache
from worker.models.weights_cache import WeightsFiles
from worker.supervise.weights_folder import default_folder

if TYPE_CHECKING:
    from producer.jobs.fetch.fetcher import Fetcher
    from worker.models.bundles import LocalBundle
    from worker.models.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: The largest weights file to fetch: VGG19 has 0.55 GB, the largest of torchvision 2.4 GB.
MAX_WEIGHTS_BYTES = 8 * 2**30
#: How long a fetch may take, with the wait for another process that fetches: 8 GiB at 4 MB/s.
WEIGHTS_TIMEOUT_S = 1800.0
#: In what the engine `half` keeps models, by a job's precision.
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: How the address of uploaded weights ends.
_UPLOADED: Final = re.compile(r"/weights/([0-9a-f]{64})$")


@dataclass(frozen=True)
class Fetched:
    """The weights of a job, on this machine."""

    #: The part of the job's spec that decides its model, with the digest of what came from an address.
    key: JobSpec
    #: Where they are; None where the model is in memory already, or its weights have a name.
    local: Path | LocalBundle | None = field(default=None, compare=False)


def _nothing_to_say() -> None:
    pass


class Models:
    """The models of this process; safe to share between threads.

    Args:
        fetcher: Brings weights files.
        settings: How much memory models may take, and where weights files are kept.
        device: Where models lie.
    """

    def __init__(self, fetcher: Fetcher, settings: WorkerSettings, device: torch.device) -> None:
        self._fetcher, self._settings, self._device = fetcher, settings, device
        self._files = WeightsFiles(
            settings.weights_cache_dir or default_folder(),
            settings.weights_cache_bytes,
            self._fetch_weights,
            WEIGHTS_TIMEOUT_S,
        )
        self._made: ModelCache[Fetched, Network] | None = None
        self._making = threading.Lock()
        self._one_at_a_time = threading.Lock()
        #: The weights that the worker's own settings name.
        self._preloads: set[str] = set()

    def get(
        self,
        spec: JobSpec,
        fetched: Fetched | None = None,
        pinned: str | None = None,
        loading: Callable[[], object] = _nothing_to_say,
    ) -> Network:
        """Return the model that a job asks for.

        Args:
            spec: The job's.
            fetched: What `fetched` gave, within its `with`; fetched here where there is none.
            pinned: As of `fetched`.
            loading: Called when all that is needed is here and this thread begins to load it: whoever waits for
                another thread that loads the same model hears nothing. What it raises ends the loading.

        Raises:
            JobError: There is no such network, layer or class, or weights or labels do not fit.
            NotHere: This machine lacks the network, a package, or the way to the weights.
            WorkerError: The device or the disk cannot be used.
        """
        if fetched is None:
            with self.fetched(spec, pinned) as found:
                return self.get(spec, found, loading=loading)
        kept = self._kept()
        if fetched in kept:
            metrics.model_reused()
        return as_asked(kept.get(fetched, partial(self._load, loading=loading)), spec)

    def at_hand(self, spec: JobSpec, pinned: str | None = None) -> bool:
        """Return whether `get` returns the model without fetching or loading it.

        What an address holds is not known before it was fetched, unless its digest is.
        """
        key = self._key(_with_digest(spec, pinned))
        return not _is_open(key) and Fetched(key) in self._kept()

    @contextmanager
    def fetched(self, spec: JobSpec, pinned: str | None = None) -> Iterator[Fetched]:
        """Bring a job's weights to this machine, where they stay in place within the `with`.

        Args:
            spec: The job's.
            pinned: The digest of the weights that it is explained by, where a worker has found it before.

        Raises:
            OtherWeights: They are not those that were named, uploaded or pinned.
            JobError: There are none, or the job may not name them.
            NotHere: They cannot be fetched from here.
            WorkerError: The disk cannot be used.
            Interrupted: As `pace.interruptible` says.
        """
        key = self._key(_with_digest(spec, pinned))
        if not _is_open(key) and Fetched(key) in self._kept():
            yield Fetched(key)
        elif "://" in key.weights:
            with _fetching(spec, pinned), self._brought(key) as local:
                digest = local.bundle.sha256 if isinstance(local, bundles.LocalBundle) else key.weights_sha256
                found = digest or sha256_of(local)  # type: ignore[arg-type]
                yield Fetched(key.model_copy(update={"weights_sha256": found}), local)
        else:
            if key.network == HF:  # no message opens a folder of this machine
                raise JobError(
                    f"the weights of {HF} are a folder, or an address that ends with a slash, not {key.weights}"
                )
            self._refuse_path(key.weights)
            networks.fetch_weights(key.network, key.weights, self._download)
            yield Fetched(key)

    @contextmanager
    def _brought(self, key: JobSpec) -> Iterator[Path | LocalBundle]:
        if key.network == HF:
            with bundles.fetched(key.weights, key.weights_sha256, self._fetcher.fetch, self._files) as local:
                yield local
        else:
            with self._files.file(key.weights, key.weights_sha256) as path:
                yield path

    def preload(self, names: Sequence[str]) -> None:
        """Load models before a job asks for them; a model that cannot be loaded is a warning, as a job may never ask.

        Args:
            names: Each `NETWORK` or `NETWORK=WEIGHTS`, as in a job; the layer is that of jobs that name none.
        """
        for name in names:
            try:
                spec = _preloaded(name)
                self._preloads.add(spec.weights)
                self.get(spec)
            except GradcamError as error:
                log.warning("action=not_preloaded %s could not be loaded ahead: %s", redact_text(name), error)

    def _kept(self) -> ModelCache[Fetched, Network]:
        # Made at the first use: a device that does not tell its memory is a fault like any other.
        with self._making:
            if self._made is None:
                kind = self._device.type
                max_bytes = self._settings.model_cache_bytes or memory.models_bytes(
                    kind, self._settings.processes_on_device
                )
                self._made = ModelCache(max_bytes, self._load, partial(memory.give_back, kind))
            return self._made

    def _key(self, spec: JobSpec) -> JobSpec:
        """With the engine `half` jobs in half precision have models of their own, kept beside the others."""
        key = model_key(spec)
        half = self._settings.engine == "half" and spec.precision in _HALVES
        return key.model_copy(update={"precision": spec.precision}) if half else key

    def _load(self, fetched: Fetched, loading: Callable[[], object] = _nothing_to_say) -> Network:
        key, local = fetched.key, fetched.local
        if "://" not in key.weights:
            return self._loaded(fetched, key.weights, loading)
        if local is None:  # the model was in memory when the weights were asked for
            with _fetching(key), self._brought(key) as local:
                return self._load(Fetched(key, local), loading)
        with _told(key, local if isinstance(local, Path) else local.weights):
            return self._loaded(fetched, local, loading)

    def _refuse_path(self, weights: str) -> None:
        """Open no file of this machine because a job says so; those named with --preload are its operator's.

        Raises:
            JobError: The weights are a file here.
        """
        if weights not in self._preloads and any(sign in weights for sign in "/\\~."):
            raise JobError("the weights are a file of the worker's machine: give a file of yours or an address instead")

    def _loaded(self, fetched: Fetched, weights: networks.Weights, loading: Callable[[], object]) -> Network:
        """Load one model at a time: loading takes several times its memory, and seeds PyTorch's own generator."""
        key = fetched.key
        with self._one_at_a_time:
            loading()
            started = time.monotonic()
            try:
                with memory.say_when_full():
                    network = networks.load(
                        key.network,
                        weights,
                        key.layer,
                        self._device,
                        self._download,
                        size=key.input_size,
                        weight_key=key.weight_key,
                        dtype=_HALVES.get(key.precision),
                        make_room=partial(self._kept().make_room, fetched),
                    )
            except memory.DeviceFull:
                # The share of the device was an estimate; next time there is more room.
                self._kept().clear()
                raise
            memory.give_back(self._device.type)
        seconds = time.monotonic() - started
        metrics.model_loaded(seconds)
        if not network.random:
            log.info("action=weights_read network=%s The weights: %s.", key.network, network.weights_read)
        log.info(
            "action=model_loaded network=%s layer=%s device=%s Loaded in %.1f s.",
            key.network,
            network.layer_name,
            network.device,
            seconds,
        )
        return network

    def _fetch_weights(self, uri: str, file: BinaryIO, timeout_s: float) -> None:
        self._fetcher.fetch_to(uri, file, MAX_WEIGHTS_BYTES, timeout_s)

    def _download(self, uri: str, path: Path) -> None:
        try:
            with path.open("wb") as file:
                self._fetch_weights(uri, file, WEIGHTS_TIMEOUT_S)
        except OSError as error:
            raise WorkerError(f"no weights can be written to {path.parent} ({error.strerror})") from None


def other_weights(spec: JobSpec, pinned: str, found: str) -> OtherWeights:
    """What is said of a job at whose address other weights lie than those that it is explained by."""
    return OtherWeights(
        f"the weights at {redact(spec.weights)} have changed: the job is explained by those of SHA-256 "
        f"{pinned}, and there are now those of {found}; put the former back, or submit the images as another job",
        found,
    )


@contextmanager
def _fetching(spec: JobSpec, pinned: str | None = None) -> Iterator[None]:
    """Tell errors of fetching as what they are for a job: as its weights were uploaded, named or pinned."""
    try:
        yield
    except OtherWeights as error:
        key = _with_digest(spec)
        if key.weights_sha256 is None and pinned is not None:
            raise other_weights(key, pinned, error.found) from None
        if _UPLOADED.search(key.weights):
            raise
        raise OtherWeights(
            f"the weights at {redact(key.weights)} have the SHA-256 {error.found}, not "
            f"{key.weights_sha256}, as #sha256= says: correct --weight-path",
            error.found,
        ) from None
    except FetchError as error:
        # Nobody finds what is not there; for other errors another machine may have access, or a way.
        kind = JobError if isinstance(error, NothingThere) else NotHere
        raise kind(f"the weights cannot be fetched: {error}; correct --weight-path") from None


@contextmanager
def _told(key: JobSpec, path: Path) -> Iterator[None]:
    """Let errors name what the user knows: the address, not the place on this worker's disk."""
    try:
        yield
    except JobError as error:
        given = "the file given with --weight-path" if _UPLOADED.search(key.weights) else redact(key.weights)
        raise type(error)(str(error).replace(str(path), given)) from None


def is_pinned(spec: JobSpec) -> bool:
    """Return whether the first worker decides which weights the job has: an address alone does not say it."""
    return _is_open(_with_digest(spec))


def _is_open(key: JobSpec) -> bool:
    return "://" in key.weights and key.weights_sha256 is None


def _with_digest(spec: JobSpec, pinned: str | None = None) -> JobSpec:
    """Take the digest at the end of an address for that of the weights; else the pinned one, where there is one.

    Raises:
        JobError: It is no digest, or another one than the job has beside it.
    """
    if "://" not in spec.weights:
        return spec
    try:
        address, named = addresses.split_digest(spec.weights)
    except ValueError as error:
        raise JobError(f"the weights {redact(spec.weights)} are refused: {error}") from None
    if None not in (named, spec.weights_sha256) and named != spec.weights_sha256:
        raise JobError(f"the weights {redact(address)} are refused: the job has two digests of them")
    return spec.model_copy(update={"weights": address, "weights_sha256": named or spec.weights_sha256 or pinned})


def model_key(spec: JobSpec) -> JobSpec:
    """Return the part of a spec that decides the model; jobs that differ elsewhere share it.

    Layers decide, as a layer looked at is not folded. So does the size of inputs: some networks are built for it, and
    it tells layers. Mean and standard deviation, filter, classes and labels do not decide: they are read at use.
    """
    kept = ("weights", "weights_sha256", "weight_key", "layer", "input_size")
    return JobSpec(network=networks.full_name(spec.network), **{name: getattr(spec, name) for name in kept})


def _preloaded(name: str) -> JobSpec:
    network, _, weights = name.partition("=")
    uploaded = _UPLOADED.search(weights)
    return JobSpec(network=network, weights=weights or "DEFAULT", weights_sha256=uploaded[1] if uploaded else None)
