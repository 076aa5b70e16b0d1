"""The hub's client waits for ever by default; inside `answering` a silent hub is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http

from surgery_lib.errors import UserError

SILENCE = 60.0  # seconds without a byte, sent or received, after which the hub counts as hanging
WAITS = ("connect", "read", "write", "pool")  # what a client may wait for


@contextmanager
def answering() -> Iterator[None]:
    """Inside, a request of the hub's client that waits without limit ends after `SILENCE`.

    An upload of gigabytes may take its time as long as it goes on. Where the client sets limits of
    its own, with what it does after them, they stay; so does a user's own client (a proxy, a
    certificate).
    """
    # The library can be told its factory, and not asked for it.
    before = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)

    def client() -> Any:
        made: Any = before()
        send = made.send

        def answered(request: Any, **options: Any) -> Any:
            given = request.extensions.get("timeout") or {}
            endless = [wait for wait in WAITS if given.get(wait) is None]
            limits = {**given, **dict.fromkeys(endless, SILENCE)}
            request.extensions = {**request.extensions, "timeout": limits}
            try:
                return send(request, **options)
            except Exception as error:
                # By name: the library has changed its client's library before. Its own would be
                # tried again, for minutes.
                if not endless or "Timeout" not in type(error).__name__:
                    raise
                raise UserError(
                    f"the hub said nothing for {SILENCE:g} s; check the network and HF_ENDPOINT, "
                    "then start again"
                ) from error

        made.send = answered
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(before)
