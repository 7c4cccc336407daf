"""What `celery --app worker.main` runs, and what its child imports: this file starts a worker, by being imported."""

from __future__ import annotations

from worker.app import start

app = start()
