"""Checks before a route (token, size, room), counters, and the security headers of answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Metrics", "describe_problem", "refused"]

OPEN = ("/", "/page.css", "/page.js", "/favicon.svg", "/healthz", "/readyz")
"""what is answered without a token: nothing of a model"""
BROWSERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Metrics:
    """What Prometheus reads, of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of_request = ["path", "status"]
        self.requests = Counter("ganlib_requests", "Requests answered", of_request, registry=self.registry)
        self.seconds = Histogram("ganlib_request_seconds", "Time to answer", ["path"], registry=self.registry)
        self.pending = Gauge("ganlib_pending_requests", "Accepted and not answered", registry=self.registry)
        self.samples = Counter("ganlib_samples", "Samples made", ["model"], registry=self.registry)
        sizes = [2**i for i in range(0, 16, 2)]
        self.batch = Histogram(
            "ganlib_batch_samples", "Samples of one batch of requests", registry=self.registry, buckets=sizes
        )
        self.version = Gauge("ganlib_model", "1 for the version that is served", ["model"], registry=self.registry)
        self.failures = Counter(
            "ganlib_refresh_failures", "Looks for a new version that failed", registry=self.registry
        )


def refused(status: int, why: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """One line, for people."""
    line = " ".join(why.split())[:1000]
    return JSONResponse({"error": line.encode("utf-8", "replace").decode()}, status, headers)


class Guard:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, token: str | None, max_body_bytes: int, max_pending: int):
        self.app, self.metrics, self.token = app, metrics, token
        self.max_body_bytes, self.max_pending, self.pending = max_body_bytes, max_pending, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(BROWSERS)
            await send(message)

        try:
            if response := self._refusal(scope):
                await response(scope, receive, send_with_headers)
            elif scope["method"] == "POST":  # all that makes samples; its body is read only if there is room
                await self._in_turn(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _in_turn(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.pending >= self.max_pending:
            await refused(429, "too many requests are waiting", {"Retry-After": "1"})(scope, receive, send)
            return
        self.pending += 1
        self.metrics.pending.set(self.pending)
        try:
            await self.app(scope, receive, send)
        finally:
            self.pending -= 1
            self.metrics.pending.set(self.pending)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if self.token and scope["path"] not in OPEN:
            scheme, _, sent = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(sent.strip().encode(), self.token.encode()):
                asks = {"WWW-Authenticate": "Bearer"}
                return refused(401, "expected the service's token: Authorization: Bearer …", asks)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_body_bytes:  # one of unknown length is cut off by FastAPI
            return refused(413, f"the body: expected at most {self.max_body_bytes} bytes, found {length[:20]}")
        return None


def describe_problem() -> dict[str, Any]:
    """The JSON schema of what `refused` says."""
    return {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
