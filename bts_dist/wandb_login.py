"""Whether W&B can be used from here: its server answers, and knows who asks.

Server, proxy and credentials are those that W&B itself would take (wandb 0.31): ``WANDB_API_KEY`` or
``WANDB_IDENTITY_TOKEN_FILE``, never both, then the key in netrc, then the one in W&B's settings file.  The question is
a request of our own, the one by which W&B asks whose a key is.  W&B's process would ask over and over where nothing
answers, would not say why, and may outlive the wait for it.
"""

import base64
import http.client
import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from pydantic import ValidationError

WITHIN_S = 4.0
"""How long the server has to answer, all in all."""
_AGAIN_S = 1.0
"""Between two questions for the same rows."""
_SERVICE = "WANDB_SERVICE"
"""Leads children to W&B's process of their parent."""

_VIEWER = "query Viewer { viewer { username } }"
_TAIL = """query Tail($project: String!, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail } } }"""
"""As W&B asks where to go on with a run.  The tail is JSON within JSON, its last rows."""
_REFUSED = (401, 403)
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""An identity token stands for an access token (RFC 7523, section 2.1)."""


_T = TypeVar("_T")


class LoginError(RuntimeError):
    """Nothing can be sent to W&B now: why, and after the last semicolon what to do."""


@dataclass(frozen=True)
class Login:
    server: str
    user: str


def check_login(within_s: float = WITHIN_S) -> Login:
    """Who this is to W&B's server.

    Raises:
        LoginError: there are no credentials, the server does not know them, or it does not answer ``within_s`` seconds.
    """
    connection = _connect(within_s)
    return Login(connection.server, connection.user())


def last_step(entity: str, project: str, wandb_id: str, within_s: float = WITHIN_S) -> int:
    """The last step of which W&B's server has a row of a run; 0 where it has none.

    Raises:
        LoginError: as ``check_login``.
    """
    return _connect(within_s).last_step(entity, project, wandb_id)


def has_rows(entity: str, project: str, wandb_id: str, step: int, within_s: float = WITHIN_S) -> bool:
    """Whether W&B's server has the rows of a run up to ``step``.

    It is asked for up to twice ``within_s`` seconds: rows that were just sent may take a moment to be found.

    Raises:
        LoginError: as ``check_login``.
    """
    end = time.monotonic() + within_s
    while last_step(entity, project, wandb_id, within_s) < step:
        if time.monotonic() + _AGAIN_S > end:
            return False
        time.sleep(_AGAIN_S)
    return True


def load_settings() -> Any:
    """W&B's settings.  Its process is started if there is none, which may take seconds on a busy machine.

    Children of this process get one of their own.  W&B would have them share this one, in which the run of a child that
    was killed goes on and holds its id, so that no later child can begin it.

    Raises:
        LoginError: a setting is not valid.
    """
    import wandb

    os.environ.pop(_SERVICE, None)
    try:
        return wandb.setup().settings
    except ValidationError as error:  # whose text holds the value
        name = ".".join(map(str, error.errors()[0]["loc"]))
        like = ", an address such as https://wandb.example.org" if name == "base_url" else ""
        raise LoginError(
            f"W&B's setting {name} is not valid; mend WANDB_{name.upper()}, or {name} in W&B's settings file{like}"
        ) from None
    except (wandb.Error, ValueError) as error:
        raise _unusable(error) from error
    finally:
        os.environ.pop(_SERVICE, None)


def _connect(within_s: float) -> "_Connection":
    import wandb

    settings = load_settings()
    base_url = str(settings.base_url)
    try:
        from wandb.sdk.lib import wbauth

        auth = wbauth.authenticate_session(
            host=base_url, source="bts", prompt=False, update_session=False
        )  # it prints and keeps nothing
    except (wandb.Error, ValueError) as error:
        raise _unusable(error) from error
    except (ImportError, TypeError, AttributeError) as error:  # nothing of this is promised by W&B
        raise LoginError(
            f"wandb {wandb.__version__} is not known here ({error}); install wandb 0.31"
        ) from error
    if auth is None:
        server = without_userinfo(base_url)
        raise LoginError(f"not logged in to {server}; {_log_in(server)}, or set WANDB_API_KEY")
    return _Connection(base_url, auth, settings, within_s)


def _unusable(error: Exception) -> LoginError:
    text = without_userinfo(" ".join(str(error).split()).rstrip("."))
    return LoginError(f"{text}; mend that variable, or W&B's settings or netrc file")


def without_userinfo(text: str) -> str:
    """The text without the user and password of any URL in it."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


def _log_in(server: str, *options: str) -> str:
    from wandb.sdk.lib.urls import DEFAULT_BASE_URL

    own = () if server == DEFAULT_BASE_URL else (f"--host {server}",)
    return f"run `{' '.join(['wandb login', *own, *options])}`"


class _Connection:
    """Requests to the server, on W&B's ways to it."""

    def __init__(self, base_url: str, auth: Any, settings: Any, within_s: float) -> None:
        own = {"http": settings.http_proxy, "https": settings.https_proxy}
        self._proxies = urllib.request.getproxies() | {kind: uri for kind, uri in own.items() if uri}
        # W&B's process asks with the key, and makes nothing of a user and password in the URL.
        self.server, self._base_url = without_userinfo(base_url), base_url
        self._auth, self._within_s = auth, within_s
        self._headers = dict(settings.x_extra_http_headers or {})
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler(self._proxies)]
        if settings.insecure_disable_ssl:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def user(self) -> str:
        """Whose the credentials are."""
        return self._in_time(lambda: self._viewer(self._authorization()))

    def last_step(self, entity: str, project: str, wandb_id: str) -> int:
        """As the function of that name."""
        variables = {"entity": entity or None, "project": project, "name": wandb_id}
        return self._in_time(lambda: self._last_step(variables, self._authorization()))

    def _in_time(self, question: Callable[[], _T]) -> _T:
        """The answer.

        Raises:
            LoginError: as ``check_login``.
        """
        answer: Future[_T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except (LoginError, OSError, http.client.HTTPException) as error:
                answer.set_exception(error)
            except (ValueError, TypeError, KeyError, AttributeError):  # an answer of another shape
                answer.set_exception(self._strange())

        # In a thread that nobody waits for, since nothing limits how long a name is looked up.
        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(self._within_s)
        except TimeoutError as error:
            raise self._silent(f"nothing within {self._within_s:g} s") from error
        except urllib.error.HTTPError as error:
            raise self._silent(f"HTTP {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise self._silent(getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(str(error) or type(error).__name__) from error

    def _silent(self, reason: str) -> LoginError:
        return LoginError(
            f"{self.server} does not answer{self._way()} ({reason}); see that this machine may reach it "
            "(WANDB_BASE_URL, HTTPS_PROXY)"
        )

    def _way(self) -> str:
        """The proxy, by its address alone: its URI may hold a password."""
        there = urlsplit(self.server)
        proxy = self._proxies.get(there.scheme)
        if not proxy or urllib.request.proxy_bypass(there.netloc):
            return ""
        found = urlsplit(proxy if "://" in proxy else f"//{proxy}")
        return f" through the proxy {found.netloc.rpartition('@')[2]}"

    def _authorization(self) -> str:
        """The credentials as a header.

        Raises:
            LoginError: the identity token cannot be read, or the server does not take it.
        """
        from wandb.sdk.lib.wbauth import AuthApiKey

        auth = self._auth
        if isinstance(auth, AuthApiKey):
            return f"Basic {base64.b64encode(f'api:{auth.api_key}'.encode()).decode()}"
        kept = _kept_token(auth.credentials_path, self._base_url)
        if kept is not None:
            return f"Bearer {kept}"
        try:
            assertion = auth.path.read_text().strip()
        except OSError as error:
            raise LoginError(
                f"the identity token in {auth.path} cannot be read ({error.strerror}); mend WANDB_IDENTITY_TOKEN_FILE"
            ) from error
        form = urlencode({"grant_type": _JWT_BEARER, "assertion": assertion}).encode()
        try:
            answer = self._post("/oidc/token", form, "application/x-www-form-urlencoded")
        except urllib.error.HTTPError as error:
            if error.code not in (400, *_REFUSED):  # RFC 6749, section 5.2
                raise
            raise LoginError(
                f"{self.server} does not take the identity token in {auth.path} (HTTP {error.code}); renew it"
            ) from error
        return f"Bearer {answer.get('access_token', '')}"

    def _viewer(self, authorization: str) -> str:
        data = self._data(_VIEWER, {}, authorization)
        if "viewer" not in data:
            raise self._strange()
        if data["viewer"] is None:
            raise self._unknown("it knows nobody by it")
        return str(data["viewer"].get("username"))

    def _last_step(self, variables: Mapping[str, Any], authorization: str) -> int:
        project = self._data(_TAIL, variables, authorization).get("model") or {}
        tail = json.loads((project.get("bucket") or {}).get("historyTail") or "[]")
        return max((int(json.loads(row).get("_step", 0)) for row in tail), default=0)

    def _data(self, query: str, variables: Mapping[str, Any], authorization: str) -> Mapping[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        try:
            answer = self._post("/graphql", body, "application/json", authorization)
        except urllib.error.HTTPError as error:
            if error.code not in _REFUSED:
                raise
            raise self._unknown(f"HTTP {error.code}") from error
        data = answer.get("data")
        if not isinstance(data, dict):
            raise self._strange()
        return data

    def _unknown(self, reason: str) -> LoginError:
        return LoginError(
            f"{self.server} does not know the key ({reason}); {_log_in(self.server, '--relogin')}, or mend "
            "WANDB_API_KEY where that is set"
        )

    def _strange(self) -> LoginError:
        return LoginError(f"{self.server} answers, and not as W&B does{self._way()}; mend WANDB_BASE_URL")

    def _post(self, path: str, body: bytes, kind: str, authorization: str | None = None) -> Mapping[str, Any]:
        own = {} if authorization is None else {"Authorization": authorization}
        request = urllib.request.Request(f"{self.server}{path}", body)
        for name, value in {**self._headers, "Content-Type": kind, **own}.items():
            # Whoever a redirect leads to is told none of them: the settings' headers may be a gateway's secrets.
            request.add_unredirected_header(name, value)
        with self._opener.open(request, timeout=self._within_s) as reply:
            answer = json.load(reply)
        if not isinstance(answer, dict):
            raise self._strange()
        return answer


def _kept_token(file: Path, server: str) -> str | None:
    """The access token that W&B keeps for a while, which the server takes though the identity token is too old."""
    try:
        found = json.loads(file.read_text())["credentials"][server]
        ends = datetime.fromisoformat(found["expires_at"]).replace(tzinfo=UTC)
        return str(found["access_token"]) if ends > datetime.now(UTC) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
