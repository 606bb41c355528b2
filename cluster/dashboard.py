"""The dashboard of a Ray cluster: where jobs are sent, and what the cluster says of itself.

All goes over HTTP, so the machine that asks needs a way to one port of the head and joins nothing.
"""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import ray
import requests
from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from cluster.auth_token import refusal
from cluster.head_port import CONNECT_S, check_head
from shards.errors import InputError, UnreachableError

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables of Ray's that name a cluster; the first that is set counts."""

for _name in (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.authentication.http_token_authentication",
):
    # They tell of every request; what goes wrong is raised too.
    logging.getLogger(_name).setLevel(logging.ERROR)

ANSWER_S = 60.0
"""Seconds for an answer from what is known for a dashboard; the first is waited for as long as for a connection."""
_FIRST = "/api/version"
"""What is asked first."""


class ServerError(RuntimeError):
    """The dashboard runs, and what it asks does not: a status of 500 or more."""


class Dashboard(JobSubmissionClient):
    """Ray's client for jobs, with errors that say what to do, and whatever else the dashboard tells.

    Raises:
        InputError: nothing answers at the address, something else does, the token is refused, or the cluster runs
            another Ray or Python.
    """

    def __init__(self, url: str) -> None:
        # Ray lets its variables win over the address that was asked for.
        with _without(ADDRESSES):
            try:
                super().__init__(url)
                python = str(self.read("/api/v0/cluster_metadata")["pythonVersion"])
            except AuthenticationError as error:  # no token to send
                raise InputError(refusal(f"the cluster at {url}")) from error
            except (requests.HTTPError, requests.JSONDecodeError, KeyError, RuntimeError) as error:
                raise InputError(
                    f"{url} is not the dashboard of a Ray cluster ({error}); {_RIGHT_ADDRESS}"
                ) from error
        _check_version(url, "Ray", self._server_ray_version or "", ray.__version__)
        _check_version(url, "Python", python, platform.python_version())

    @property
    def url(self) -> str:
        address: str = self.get_address()
        return address

    def read(self, path: str) -> dict[str, Any]:
        """The ``data`` of one of the dashboard's own pages.

        Raises:
            RuntimeError: it has none for now.
        """
        answer = self._do_request("GET", path)
        if answer.status_code != 200:
            self._raise_error(answer)
        data: dict[str, Any] = answer.json()["data"]
        return data

    def upload(self, folder: Path) -> str:
        """Keep a folder on the cluster for jobs that are sent within ten minutes; the ``working_dir`` that names it."""
        environment = {"working_dir": str(folder)}
        self._upload_working_dir_if_needed(environment)
        return environment["working_dir"]

    def log_end(self, job: JobDetails, lines: int) -> str:
        """The last lines of a job's log; nothing where it has none yet."""
        where = urlencode(
            {
                "node_id": job.driver_node_id or "",
                "filename": f"job-driver-{job.submission_id}.log",
                "lines": lines,
            }
        )
        answer = self._do_request("GET", f"/api/v0/logs/file?{where}")
        return str(answer.text) if answer.status_code == 200 else ""

    def _raise_error(self, r: Any) -> None:
        # The text may be a traceback, whose last line says what happened.
        lines = r.text.strip().splitlines() or [r.reason]
        kind = ServerError if r.status_code >= 500 else RuntimeError
        raise kind(f"the cluster at {self._address} answers with status {r.status_code}: {lines[-1]}")

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        limits = (CONNECT_S, CONNECT_S if endpoint == _FIRST else ANSWER_S)
        try:
            return super()._do_request(method, endpoint, timeout=limits, auth=_as_it_is, **options)
        except AuthenticationError as error:
            raise InputError(refusal(f"the cluster at {self._address}")) from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"no Ray dashboard answers at {self._address} ({_short(error)}); {_RIGHT_ADDRESS}"
            ) from error


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps Ray's token in place, for which requests would put a password that netrc has for the head."""
    return request


_RIGHT_ADDRESS = (
    "give the head's, as in --address http://HEAD:8265, see that its cluster runs (`ray start --head` or `ray up`) "
    "and that this machine reaches the port"
)


def find_url(address: str | None, configured: str | None) -> str | None:
    """Where the dashboard is: what ``--address`` says, then ``cluster.address``, then Ray's variables; or None.

    ``cluster.address=auto`` is whatever the variables say, or else the cluster that this machine is a node of.

    An address that is not the dashboard's own, such as ``auto`` or ``host:6379``, is asked for it: from
    ``cluster.address`` and ``RAY_ADDRESS`` alone, since ``--address`` is the dashboard's.

    Raises:
        InputError: it has a scheme that is not HTTP, or no cluster answers there.
    """
    if address is not None and "://" not in address and address != "auto":
        address = f"http://{address}"
    variable = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    found = address or (variable if variable and configured == "auto" else configured) or variable
    if found is None:
        return None
    if found.startswith(("http://", "https://")):
        if not urlsplit(found).hostname:
            raise InputError(f"{found!r} names no machine; {_RIGHT_ADDRESS}")
        return found.rstrip("/")
    return _ask(found)


def _ask(address: str) -> str:
    """The address of the dashboard of the cluster at ``address``."""
    if "://" in address:
        raise InputError(f"{address} is not an address of a dashboard; {_RIGHT_ADDRESS}")
    try:
        with _without(ADDRESSES):
            check_head(address)
            url: str = get_address_for_submission_client(address)
    except AuthenticationError as error:
        raise InputError(refusal(f"the cluster at {address}")) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({_short(error)}); {_RIGHT_ADDRESS}"
        ) from error
    return url


def _check_version(url: str, name: str, theirs: str, ours: str) -> None:
    """Refuse a cluster on which this code has not been tried.

    Raises:
        InputError: its Ray or its Python is another one, the last figure aside.
    """
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise InputError(
            f"the cluster at {url} has {name} {theirs}, this machine {ours}; start the cluster with {name} "
            f"{'.'.join(ours.split('.')[:2])}, or give the command where the versions are the cluster's"
        )


def _short(error: Exception) -> str:
    """What happened, in the words of the innermost error, which is the system's own."""
    while error.__cause__ is not None or error.__context__ is not None:
        inner = error.__cause__ or error.__context__
        if not isinstance(inner, Exception):
            break
        error = inner
    text = str(error).partition("\n")[0] or type(error).__name__
    # Ray's other ports answer in bytes.
    return text if text.isprintable() else "what listens there is no web server"


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without these variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
