"""A real S3 protocol server in a process of its own, a proxy that fails in chosen ways, and one that hangs."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"
_HOP = ("connection", "transfer-encoding", "keep-alive", "date", "server")


def environment(port: int) -> dict[str, str]:
    """What a person sets to reach the server."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


class ObjectStore:
    """The server with one empty bucket."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.environment = environment(self.port)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.1)
        self._request("PUT", "")

    def _request(self, method: str, name: str, body: bytes | None = None) -> bytes:
        """A plain HTTP request: the server looks at no signature."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"}
        connection.request(method, f"/{BUCKET}/{name}".rstrip("/"), body, signed)
        response = connection.getresponse()
        data = response.read()
        assert response.status < 300, (response.status, data)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Writes one object."""
        self._request("PUT", name, data)

    def get(self, name: str) -> bytes:
        """One object."""
        return self._request("GET", name)

    def put_folder(self, folder: Path, name: str) -> str:
        """Copies a folder; returns its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{BUCKET}/{name}"

    def close(self) -> None:
        """Ends the server."""
        self.process.kill()
        self.process.wait()


class FailingProxy:
    """Passes requests on to a server. `answer(path)` says what comes instead: a status, `cut`, seconds to wait, None.

    seen: method and path of every request, with its range.
    """

    def __init__(self, port: int) -> None:
        self.answer = lambda path: None
        self.seen: list[tuple[str, str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                """Says nothing."""

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                proxy.seen.append((self.command, self.path, self.headers.get("range", "")))
                answer = proxy.answer(self.path)
                if isinstance(answer, float):
                    time.sleep(answer)
                if isinstance(answer, int):
                    self.send_response(answer)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                data = response.read()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in (*_HOP, "content-length"):
                        self.send_header(name, value)
                length = response.getheader("content-length") if self.command == "HEAD" else len(data)
                self.send_header("content-length", str(length))
                self.end_headers()
                if answer == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

            def handle(self) -> None:
                with suppress(ConnectionError, OSError):
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.environment = environment(self.port)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends the proxy."""
        self.server.shutdown()
        self.server.server_close()


class HangingForwarder:
    """Passes TCP on to a server until `left` bytes have gone either way; then it accepts, keeps and says nothing.

    pace: bytes a second that a connection is given. Nobody is refused and nothing is closed: the peer looks alive.
    """

    def __init__(self, port: int, left: float = math.inf) -> None:
        self.left, self.pace = left, math.inf
        self._port, self._lock = port, threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.environment = environment(self.port)
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._kept += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while self._may_pass(0) and (data := source.recv(1 << 16)):
                if not self._may_pass(len(data)):
                    return
                target.sendall(data)
                time.sleep(len(data) / self.pace)
            if self._may_pass(0):
                target.shutdown(socket.SHUT_WR)

    def _may_pass(self, size: int) -> bool:
        with self._lock:
            self.left -= size
            return self.left > 0

    def close(self) -> None:
        """Ends the forwarder and all connections."""
        for each in (self._listening, *self._kept):
            each.close()


@contextmanager
def reached(variables: dict[str, str]) -> Iterator[None]:
    """This process itself reads the store with these variables; file systems of before are forgotten."""
    import fsspec

    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    fsspec.spec.AbstractFileSystem.clear_instance_cache()
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
