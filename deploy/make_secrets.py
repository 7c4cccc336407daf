"""Write the secrets that compose.yaml reads, into deploy/secrets/: `python3 deploy/make_secrets.py`.

Those that are there stay as they are. It needs nothing but Python's standard library.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path


def contents() -> dict[str, str]:
    """Return new secrets, by the name of the file that holds each."""
    password, access_key, secret_key = (
        secrets.token_hex(24),
        f"GRADCAM{secrets.token_hex(6).upper()}",
        secrets.token_hex(24),
    )
    identity = {
        "name": "gradcam",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return {
        "valkey.conf": f"requirepass {password}\n",
        "redis_url": f"redis://:{password}@redis:6379/0\n",
        "s3.json": json.dumps({"identities": [identity]}, indent=1) + "\n",
        "aws_credentials": f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n",
        "grafana_password": secrets.token_hex(12) + "\n",
    }


def write(folder: Path) -> bool:
    """Write what is missing; all or nothing, as the files belong together. Returns whether anything was written.

    Raises:
        FileExistsError: Some of the files are there, and others are not.
    """
    new = contents()
    there = [name for name in new if (folder / name).exists()]
    if len(there) == len(new):
        return False
    if there:
        raise FileExistsError(
            f"{folder} has {', '.join(there)} and not the others: remove them, or bring the others back"
        )
    # Nobody else gets into the folder. The files in it are open, as containers read them as a user of their own.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, text in new.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o644)
    return True


def main() -> None:
    """Write them beside this file, or into the folder that is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "secrets"
    try:
        written = write(folder)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{'written to' if written else 'all there already:'} {folder}")  # noqa: T201


if __name__ == "__main__":
    main()
