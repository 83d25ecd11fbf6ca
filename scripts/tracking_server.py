"""Serve MLflow to a lab: runs in PostgreSQL, files in a folder or bucket, a password per person.

    MLFLOW_AUTH_ADMIN_PASSWORD=... python scripts/tracking_server.py postgresql://mlflow@db/mlflow

The clients send everything to this server. They need neither the database's driver and password nor
access to the files. See docs/tracking_server.md.
"""

import argparse
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

from brainseg.core.files import write_text
from brainseg.tracking.client import NO_TELEMETRY

# Everybody may write to the experiments of the lab, which is what `brainseg.train` needs.
AUTH = """[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def main() -> None:
    """Write the server's own files on the first start, and become the server."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", help="postgresql://USER@HOST/DATABASE, without a password")
    parser.add_argument("--folder", type=Path, default=Path("mlflow-server"))
    parser.add_argument("--artifacts", help="folder or s3://BUCKET/PATH (FOLDER/artifacts)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=4, help="server processes (4)")
    arguments, further = parser.parse_known_args()
    parts = urlsplit(arguments.database)
    if parts.scheme != "postgresql" or parts.password or len(parts.path) < 2:
        parser.error("database must be postgresql://USER@HOST/DATABASE; its password: ~/.pgpass")
    database = arguments.database.replace("postgresql:", "postgresql+psycopg:", 1)
    folder = arguments.folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    auth, key = folder / "auth.ini", folder / "secret.key"
    if not key.exists():
        if "MLFLOW_AUTH_ADMIN_PASSWORD" not in os.environ:
            parser.error(
                "on the first start, set MLFLOW_AUTH_ADMIN_PASSWORD: 12 characters or more"
            )
        write_text(key, secrets.token_hex(32))
        key.chmod(0o600)
    write_text(auth, AUTH.format(database=database))
    os.environ |= NO_TELEMETRY | {
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--backend-store-uri", database]
    command += ["--artifacts-destination", arguments.artifacts or str(folder / "artifacts")]
    command += ["--host", arguments.host, "--port", str(arguments.port)]
    command += ["--workers", str(arguments.workers), *further]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
