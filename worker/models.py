"""Models by what a job says of them: fetched, checked, loaded once, kept while there is room."""

from __future__ import annotations

import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from producer.jobs import uris
from producer.jobs.errors import FetchError, JobError, WorkerError
from producer.jobs.spec import JobSpec
from producer.jobs.storage import sha256_of
from worker import networks
from worker.cache import ModelCache
from worker.classes import checked_class
from worker.device import choose

if TYPE_CHECKING:
    from producer.jobs.fetch import Fetcher
    from worker.networks import Network
    from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

#: The largest weights file that is fetched: VGG19 has 0.55 GB, the largest of torchvision 2.4 GB.
MAX_WEIGHTS_BYTES = 8 * 2**30
#: What fetching them may take: 8 GiB at 4 MB/s.
WEIGHTS_TIMEOUT_S = 1800.0


class Models:
    """The models of this process; safe to share between threads.

    Args:
        fetcher: Brings weights files.
        settings: The device, and how much memory models may take.
    """

    def __init__(self, fetcher: Fetcher, settings: WorkerSettings) -> None:
        self._fetcher, self._settings = fetcher, settings
        self._kept: ModelCache[JobSpec, Network] = ModelCache(settings.model_cache_bytes, self._load)

    def get(self, spec: JobSpec) -> Network:
        """Give the model that a job asks for.

        Raises:
            JobError: There is no such network, layer or class, or the weights do not fit.
            WorkerError: The device or the disk cannot be used.
        """
        return self._kept.get(_model_key(spec))

    def _load(self, spec: JobSpec) -> Network:
        started = time.monotonic()
        load = partial(
            networks.load,
            spec.network,
            layer=spec.layer,
            labels=spec.labels,
            device=choose(self._settings.device),
            download=self._download,
        )
        if "://" in spec.weights:
            with tempfile.TemporaryDirectory(prefix="gradcam-weights-") as folder:
                path = self._fetch_weights(spec, Path(folder))
                try:
                    network = load(weights=path)
                except JobError as error:
                    # The user knows the address, not the place on this worker's disk.
                    given = "given with --weight-path" if spec.weights_sha256 else uris.redact(spec.weights)
                    raise JobError(str(error).replace(str(path), given)) from None
        else:
            network = load(weights=spec.weights)
        checked_class(network, spec.class_id, spec.class_name)
        log.info(
            "action=model_loaded network=%s layer=%s device=%s Loaded in %.1f s.",
            spec.network,
            network.layer_name,
            network.device,
            time.monotonic() - started,
        )
        return network

    def _fetch_weights(self, spec: JobSpec, folder: Path) -> Path:
        path = folder / "weights"
        try:
            self._download(spec.weights, path)
        except FetchError as error:
            raise JobError(f"the weights cannot be fetched: {error}; correct --weight-path") from None
        # Uploaded weights are named by their content; other bytes under that name are not what the user gave.
        if spec.weights_sha256 and sha256_of(path) != spec.weights_sha256:
            raise JobError(
                f"the weights at {uris.redact(spec.weights)} are not those that were uploaded: submit them again"
            )
        return path

    def _download(self, uri: str, path: Path) -> None:
        try:
            with path.open("wb") as file:
                self._fetcher.fetch_to(uri, file, MAX_WEIGHTS_BYTES, WEIGHTS_TIMEOUT_S)
        except OSError as error:
            raise WorkerError(f"no weights can be written to {path.parent} ({error.strerror})") from None


def _model_key(spec: JobSpec) -> JobSpec:
    """Of a spec, what decides the model: jobs that differ elsewhere share it."""
    kept = ("network", "weights", "weights_sha256", "layer", "labels", "class_id", "class_name")
    return JobSpec(**{name: getattr(spec, name) for name in kept})
