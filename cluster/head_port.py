"""The port of a head by which Ray is joined: whether a head answers there, before Ray itself tries for long.

Ray asks an address at which nobody is for a quarter of an hour, and its C++ tells of each time; without a token that it
was told to send it ends the process.
"""

import os
import socket
from urllib.parse import urlsplit

from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]

CONNECT_S = 10.0
"""Seconds for a connection, and again for the first answer."""

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client begins to speak HTTP/2, with no settings of its own (RFC 9113, 3.4); the server sends its settings."""
_SETTINGS = 4
"""Fourth byte of the answer: the kind of its first frame."""


def check_head(address: str) -> None:
    """Ask whether a head answers at ``host:port``, or at what Ray finds for ``auto``.

    An address with a scheme, or none that Ray finds, is left for Ray to judge.

    Raises:
        ConnectionError: nobody answers, or somebody else.
        ValueError: it is no address.
        ray.exceptions.AuthenticationError: the token is refused, or there is none to send.
        ray.exceptions.RayError: the head has trouble of its own.
    """
    asked = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    found = None if "://" in asked else canonicalize_bootstrap_address(asked)
    if found is None:
        return
    _check_answer(found)
    ensure_token_if_auth_enabled(create_token_if_missing=False)
    GcsClient(address=found)


def _check_answer(address: str) -> None:
    place = urlsplit(f"//{address}")
    try:
        with socket.create_connection((place.hostname, place.port), timeout=CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):  # as Ray reads it
                return  # what it would answer is Ray's to read
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except TimeoutError as error:
        raise ConnectionError(f"no answer in {CONNECT_S:g} s") from error
    except OSError as error:
        raise ConnectionError(error.strerror or str(error)) from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ConnectionError("what listens there is no head of Ray's")
