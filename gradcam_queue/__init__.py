"""What programs import: `from gradcam_queue import Client`; everything else may move from release to release.

from gradcam_queue import Client, ReadOptions, Source

client = Client.from_env()
job = client.submit(["photos/", "s3://bucket/cat.jpg"], network="resnet50")
for status in client.watch(job):
    print(status.done, "of", status.total)
client.download(job, "results")
"""

from __future__ import annotations

from producer.client.client import Client
from producer.input.bad_rows import BadRow
from producer.input.sources import ReadOptions as ReadOptions
from producer.input.sources import Source, Sources, open_sources
from producer.jobs.model.errors import (
    GradcamError,
    JobEnded,
    JobError,
    ServiceError,
    SettingsError,
    SourceChanged,
    StoreError,
    Unfit,
    UnknownJob,
    UsageError,
    WorkerError,
)
from producer.jobs.model.history import Action
from producer.jobs.model.results import ExplainedClass, Failure, Result
from producer.jobs.model.results import Prediction as Prediction
from producer.jobs.model.stage_times import StageTime
from producer.jobs.model.states import TERMINAL, Ingest, JobState, WaitReason
from producer.jobs.model.status import ChunkCounts, JobStatus, Wait
from producer.jobs.model.worker_record import Drained, WorkerRecord
from producer.maintenance.audit import Finding
from producer.output.download import Downloaded, Fetched
from producer.output.job_results import PictureUrl
from producer.submission.plan import Plan
from producer.submission.recover import Recovered, StoredJob
from worker.models.network_spec import NetworkSpec

__all__ = [
    "TERMINAL",
    "Action",
    "BadRow",
    "ChunkCounts",
    "Client",
    "Downloaded",
    "Drained",
    "ExplainedClass",
    "Failure",
    "Fetched",
    "Finding",
    "GradcamError",
    "Ingest",
    "JobEnded",
    "JobError",
    "JobState",
    "JobStatus",
    "NetworkSpec",
    "PictureUrl",
    "Plan",
    "Prediction",
    "ReadOptions",
    "Recovered",
    "Result",
    "ServiceError",
    "SettingsError",
    "Source",
    "SourceChanged",
    "Sources",
    "StageTime",
    "StoreError",
    "StoredJob",
    "Unfit",
    "UnknownJob",
    "UsageError",
    "Wait",
    "WaitReason",
    "WorkerError",
    "WorkerRecord",
    "open_sources",
]
