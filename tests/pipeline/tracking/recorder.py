"""A stand-in for W&B's server on loopback, which serves the real client.

The server answers requests about runs, resuming and artifacts, and keeps what it received. Like the
real server, it stores rows at an offset of a file, lets a resumed run continue at its last row, and
does not ask again for an artifact whose name and digest it knows.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.pipeline.tracking.answers import Answers

KEY = "k" * 40


class Recorder(Answers, ThreadingHTTPServer):
    """The server, which runs until the end of a `with` block.

    `trouble` makes the server hang ("hang") or return an HTTP status, instead of an answer.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        Answers.__init__(self)
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", port), Handler)
        self.unknown: list = []
        self.trouble = None
        self.requests = 0
        self.lock = threading.RLock()
        threading.Thread(target=self.serve_forever, daemon=True, args=(0.05,)).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Ignore connections that a killed client left."""

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def environment(self, **changes):
        """Return environment variables that make a client use this server."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        return kept | {
            "WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false",
            "NETRC": os.devnull, "COLUMNS": "200", "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        } | changes  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Handles one connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Recorder

    def log_message(self, *_):
        """Log no requests."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests += 1
        if self.server.trouble == "hang":
            while self.server.trouble == "hang":
                time.sleep(0.1)
            self.close_connection = True
            return
        if self.server.trouble:
            self._say({"error": "out of order"}, self.server.trouble)
            return
        with self.server.lock:
            self._say(*self._answer(self.path.split("?")[0], body))

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self, path, body):
        if path == "/graphql":
            if self.headers.get("authorization") not in (None, _basic(KEY)):
                return {"errors": [{"message": "invalid API key"}]}, 401
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            base = f"http://{self.headers['host']}"
            try:
                data = self.server.answer(operation, asked.get("variables") or {}, base)
            except Exception as error:  # the client would repeat its request for ever after a 500
                self.server.unknown.append((operation, repr(error)))
                return {"errors": [{"message": repr(error)}]}, 400
            if data is None:
                self.server.unknown.append((operation, "not known"))
                return {"errors": [{"message": f"unknown {operation}"}]}, 200
            return {"data": data}, 200
        if stream := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path):
            self.server.stream(stream[2], stream[1], json.loads(body))
            return {"limits": {}}, 200
        if path.startswith("/storage/"):
            self.server.files[path.removeprefix("/storage/")] = len(body)
            return {}, 200
        return {"error": "no such page"}, 404

    def _say(self, content, status):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _basic(key):
    return "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
