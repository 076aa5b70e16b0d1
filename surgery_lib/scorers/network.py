"""Scores from a server: paced, tried again on passing faults, and kept on disk one by one."""

import asyncio
import hashlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm.auto import tqdm

from surgery_lib import files
from surgery_lib.errors import UserError, hidden
from surgery_lib.files import loads

LARGEST = 8 << 20  # bytes of an answer; a verdict takes a few hundred
LONGEST_WAIT = 120.0  # seconds that a server may ask for
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Endpoint:
    """One URL that JSON is posted to, never more often than agreed.

    Args:
        per_second: Most requests a second, over all threads.
        attempts: How often one request is tried while the server is busy, broken or out of reach.
        wait: Seconds before the second attempt; doubled each time, unless the server names a time.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: dict[str, str],
        *,
        per_second: float = 1.0,
        attempts: int = 6,
        wait: float = 1.0,
        timeout: float = 60.0,
    ):
        self.name = name
        self.url = url
        self.attempts = attempts
        self.wait = wait
        self.next = 0.0
        self.lock = threading.Lock()
        self.timeout = timeout
        if not 0 < per_second < math.inf or attempts < 1 or not 0 <= wait < math.inf:
            raise UserError(
                f"{name}: per_second and attempts are above 0 and wait is not below; correct them"
            )
        self.gap = 1.0 / per_second
        self.secrets = [word for value in headers.values() for word in value.split()[-1:]]
        # Identity: a compressed answer may unpack to any size.
        headers = {**headers, "Accept-Encoding": "identity"}
        self.options: dict[str, Any] = {"verify": httpx.create_ssl_context(), "timeout": None}
        try:
            self.options["headers"] = httpx.Headers(headers)
        except (UnicodeEncodeError, ValueError, httpx.InvalidURL) as error:
            raise UserError(f"the key of {name} holds odd characters; set it again") from error

    def _take_turn(self) -> None:
        with self.lock:
            now = time.monotonic()
            turn = max(now, self.next)
            self.next = turn + self.gap
        time.sleep(max(0.0, turn - now))

    def post(self, body: dict[str, Any]) -> Any:
        """The JSON that the server answers with.

        UserError where it refuses, stays out of reach for all attempts, or answers something else.
        """
        fault = ""
        for attempt in range(self.attempts):
            self._take_turn()
            pause = self.wait * 2**attempt
            try:
                answer = asyncio.run(self._send(body))
            except UserError:
                raise
            except (httpx.TransportError, TimeoutError) as error:
                fault = type(error).__name__
            except (httpx.InvalidURL, httpx.DecodingError, UnicodeEncodeError, ValueError) as error:
                raise UserError(
                    f"{self.name} cannot be asked ({type(error).__name__}); check its address and "
                    "that texts are whole"
                ) from error
            else:
                if answer.status_code not in PASSING:
                    return self._read(answer)
                fault = f"status {answer.status_code}"
                pause = _asked_for(answer, pause)
            if attempt + 1 < self.attempts:
                time.sleep(pause)
        raise UserError(
            f"{self.name} did not answer in {self.attempts} attempts ({fault}); what was scored is "
            "kept, so start again later, or lower per_second"
        )

    async def _send(self, body: dict[str, Any]) -> httpx.Response:
        """Ask once. One deadline is over all of it, however its headers or body drip; one size."""
        async with (
            asyncio.timeout(self.timeout),
            httpx.AsyncClient(**self.options) as client,
            client.stream("POST", self.url, json=body) as answer,
        ):
            parts, size = [], 0
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise UserError(f"{self.name} answers compressed, unasked; check its address")
            async for part in answer.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > LARGEST:
                    raise UserError(
                        f"{self.name} answers with more than {LARGEST:,} bytes; check its address"
                    )
            return httpx.Response(
                answer.status_code, headers=answer.headers, content=b"".join(parts)
            )

    def _read(self, answer: httpx.Response) -> Any:
        if answer.status_code in (401, 403):
            raise UserError(f"{self.name} refuses the key (status {answer.status_code}); renew it")
        if answer.is_error:
            told = hidden(" ".join(answer.text.split()), self.secrets)[:200]
            raise UserError(
                f"{self.name} rejects the request (status {answer.status_code}): {told}; "
                "correct the scorer's options"
            )
        try:
            return loads(answer.content.decode("utf-8"))
        except ValueError as error:
            raise UserError(
                f"{self.name} answered something that is not JSON; check its address"
            ) from error


def _asked_for(answer: httpx.Response, otherwise: float) -> float:
    try:
        asked = float(answer.headers["retry-after"])
    except (KeyError, ValueError):
        return otherwise
    return min(asked, LONGEST_WAIT) if 0 <= asked < math.inf else otherwise


class Cache:
    """Scores by a hash of everything that they depend on; the texts themselves are not stored."""

    def __init__(self, path: Path | str | None = None):
        self.path = Path(path) if path else files.cache() / "scores.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self.base.execute(
                "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL)"
            )
            self._cut()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{self.path} cannot be used as a cache ({error}); delete it or name another"
            ) from error

    def _cut(self) -> None:
        """The older half goes where the file is larger than a cache may be."""
        if self.path.stat().st_size <= files.SMALL_CACHE:
            return
        half = "SELECT rowid FROM scores ORDER BY rowid LIMIT (SELECT count(*) / 2 FROM scores)"
        self.base.execute(f"DELETE FROM scores WHERE rowid IN ({half})")
        self.base.execute("VACUUM")

    def get(self, key: str) -> float | None:
        """The score kept under `key`."""
        try:
            row = self.base.execute("SELECT score FROM scores WHERE key = ?", [key]).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be read ({error}); delete it") from error
        # What is no score is asked for again: anybody may have written into that file.
        good = row is not None and isinstance(row[0], float) and 0 <= row[0] <= 1
        return row[0] if good else None

    def put(self, key: str, score: float) -> None:
        """Keep a score, at once."""
        try:
            self.base.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", [key, score])
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path} cannot be written ({error}); free some space or name another cache"
            ) from error


def scored(
    name: str,
    items: Sequence[Any],
    ask: Callable[[Any], float],
    cache: Cache,
    identity: Any,
    workers: int = 1,
) -> np.ndarray:
    """Scores (n,) of `items`, each equal one asked for once ever; `identity` is what else counts.

    The first error ends the asking; everything answered by then is in the cache.
    """
    if workers < 1:
        raise UserError(f"{name}: workers = {workers}; give at least 1")
    keys = [
        hashlib.sha256(json.dumps([identity, item], sort_keys=True).encode()).hexdigest()
        for item in items
    ]
    known = {key: cache.get(key) for key in keys}
    missing = {key: item for key, item in zip(keys, items, strict=True) if known[key] is None}
    with ThreadPoolExecutor(workers) as pool:
        asked = {pool.submit(ask, item): key for key, item in missing.items()}
        try:
            for done in tqdm(as_completed(asked), total=len(asked), desc=name, delay=2.0):
                known[asked[done]] = done.result()
                cache.put(asked[done], done.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            # Answers that were under way when one failed are paid for too.
            for done, key in asked.items():
                if done.done() and not done.cancelled() and done.exception() is None:
                    cache.put(key, done.result())
    return np.array([known[key] for key in keys], dtype=float)
