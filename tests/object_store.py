"""A real object store on loopback, moto's server, behind a door that can be told to fail."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

BUCKET = "photos"
_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


class ObjectStore:
    """Speaks S3. `s3://photos/...` is found there by whoever inherits the environment."""

    def __init__(self, url: str) -> None:
        import boto3

        self._client = boto3.client("s3", endpoint_url=url)
        self._client.create_bucket(Bucket=BUCKET)
        self._failures: dict[str, int] = {}
        self._lock = threading.Lock()

    @staticmethod
    @contextmanager
    def started() -> Iterator[ObjectStore]:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from s3fs import S3FileSystem
        from werkzeug.serving import make_server

        stores: list[ObjectStore] = []
        application: Callable[..., Any] = DomainDispatcherApplication(create_backend_app)

        def door(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
            if stores and stores[0].fails(environ):
                start_response("500 Internal Server Error", [])
                return [b""]
            return application(environ, start_response)

        server = make_server("127.0.0.1", 0, door, threaded=True)
        url = f"http://127.0.0.1:{server.server_port}"
        before = dict(os.environ)
        os.environ.update(_SETTINGS, AWS_ENDPOINT_URL=url)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            stores.append(ObjectStore(url))
            yield stores[0]
        finally:
            server.shutdown()
            thread.join()
            os.environ.clear()
            os.environ.update(before)
            S3FileSystem.clear_instance_cache()  # they keep this store's address for the next one

    def upload(self, folder: Path, prefix: str) -> str:
        """Upload the files of a folder, and return their URL."""
        for path in sorted(folder.iterdir()):
            self.put(f"{prefix}/{path.name}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    @contextmanager
    def failing(self, name: str, *, times: int) -> Iterator[None]:
        """Answer so many reads of files of a name with an error, as a store does that is busy."""
        self._failures[name] = times
        try:
            yield
        finally:
            del self._failures[name]

    def fails(self, request: WSGIEnvironment) -> bool:
        name = request["PATH_INFO"].rpartition("/")[2]
        with self._lock:
            if request["REQUEST_METHOD"] != "GET" or self._failures.get(name, 0) <= 0:
                return False
            self._failures[name] -= 1
            return True
