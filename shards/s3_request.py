"""One request to S3: the client that sends it, when it is sent again, and what a failure means to the user.

The retries are ours, not botocore's: five tries of its standard mode at a server that refuses connections
take less than a second, too short for one that restarts, and it never sends again what arrived damaged.
"""

import os
import time
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.loaders import create_loader
from botocore.session import Session

from shards.config import StoreConfig
from shards.errors import InputError, UnreachableError
from shards.patience import Patience
from shards.store import MissingObject, StoreError, join_uri

_API_DESCRIPTIONS = create_loader()  # parsed once: that is most of the time a client takes
_CREDENTIALS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_PROFILE"
ROLE = (
    "give the machine a role (where it has one, AWS_METADATA_SERVICE_TIMEOUT=5 and "
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS=5 wait longer for it)"
)
"""What to do where no keys are to be set: Boto waits a second, once, for the machine's own answer."""
_BUCKET_NAMES = "not a valid bucket; its name has 3 to 63 lower-case letters, digits, '.' and '-'"


class PreconditionError(Exception):
    """The server's 412.  ``resent`` tells that the request went out more than once."""

    def __init__(self, resent: bool) -> None:
        super().__init__(resent)
        self.resent = resent


class BeyondEndError(Exception):
    """The server's 416: the object ends before the range that was asked for."""


def connect(config: StoreConfig) -> Any:
    """A client for the endpoint, region and credentials of the AWS environment.

    Of the usual AWS settings, two matter for servers other than Amazon's.  With an endpoint of its own the bucket
    stands in the path; a server that wants it in the host name needs ``addressing_style = virtual`` under ``s3 =``
    in the AWS config file (AWS_CONFIG_FILE).  One that does not know the checksums SDKs send since 2025 needs
    AWS_REQUEST_CHECKSUM_CALCULATION=when_required; uploads carry their MD5 all the same.
    """
    settings = Config(
        connect_timeout=min(config.timeout_s, 10),
        read_timeout=config.timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=32,
        tcp_keepalive=True,
    )
    try:
        session = Session()
        session.register_component("data_loader", _API_DESCRIPTIONS)
        # botocore itself reads AWS_DEFAULT_REGION alone; other SDKs, and so most manuals, have AWS_REGION.
        return session.create_client("s3", os.environ.get("AWS_REGION") or None, config=settings)
    except (BotoCoreError, ValueError) as error:
        raise InputError(f"{error}; check AWS_ENDPOINT_URL, AWS_REGION, {_CREDENTIALS}") from error


def request(
    client: Any, operation: str, patience: Patience, uri: str, key: str = "", **parameters: Any
) -> Any:
    """Send one request, again if that may help, and raise its failure as the store's own error.

    ``uri`` and ``key`` name the object in errors; the request itself is told by ``parameters``.
    """
    endpoint = client.meta.endpoint_url
    resent = False
    while True:
        try:
            return getattr(client, operation)(**parameters)
        except ClientError as error:
            if not _may_pass(error):
                raise _refusal(error, uri, key, endpoint, resent) from error
            if not patience.wait(_retry_after(error)):
                raise StoreError(
                    f"{join_uri(uri, key)}: {error.operation_name} failed ({_said(error)}), and {patience}; "
                    "look after the server, or raise that setting"
                ) from error
        except BotoCoreError as error:
            if not isinstance(error, NoConnectionError | HTTPClientError) or not patience.wait():
                raise _failure(error, join_uri(uri, key), endpoint) from error
        resent = True


_PASSING_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "RequestTimeout",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}


def _may_pass(error: ClientError) -> bool:
    """Whether the same request may succeed a little later."""
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status in (408, 429, 500, 502, 503, 504) or error.response["Error"].get("Code") in _PASSING_CODES


def _retry_after(error: ClientError) -> float:
    """Seconds the server asks to be left alone, as it says in Retry-After: a number of them, or a date."""
    asked = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def _said(error: ClientError) -> str:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return f"{status} {error.response['Error'].get('Code', '')}: {error.response['Error'].get('Message', '')}"


def _refusal(error: ClientError, uri: str, key: str, endpoint: str, resent: bool) -> Exception:
    """What a server's error answer means to the caller."""
    where = join_uri(uri, key)
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    code = error.response["Error"].get("Code", "")
    said = _said(error)
    match status, code:
        case _, "NoSuchBucket":
            return InputError(f"{where}: there is no such bucket; create it or correct the name")
        case _, "InvalidBucketName":
            return InputError(f"{where}: {_BUCKET_NAMES}")
        case 404, "NoSuchKey" | "404":
            return MissingObject(key, uri)
        case 412, _:
            return PreconditionError(resent)
        case 416, _:
            return BeyondEndError()
        case (301 | 307, _) | (_, "AuthorizationHeaderMalformed"):
            return InputError(f"{where}: wrong region ({said}); set AWS_REGION to the bucket's")
        case (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired"):
            return InputError(
                f"{where}: access denied ({said}); check {_CREDENTIALS}, that they have not expired, "
                "and that they may list the bucket and get, put and delete its objects"
            )
        case 501, _:
            return InputError(
                f"{where}: {endpoint} does not offer what {error.operation_name} needs ({said}); use a server "
                "with multipart uploads and conditional writes (If-None-Match), and where it is the checksums "
                "that it does not know, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
            )
        case _:
            return StoreError(f"{where}: {error.operation_name} failed ({said})")


def _failure(error: BotoCoreError, where: str, endpoint: str) -> Exception:
    """What a request without an answer means to the caller."""
    match error:
        case NoConnectionError():
            return UnreachableError(
                f"{where}: cannot reach {endpoint}; is it running, is AWS_ENDPOINT_URL right?"
            )
        case NoCredentialsError() | PartialCredentialsError() | CredentialRetrievalError():
            return InputError(
                f"{where}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or {ROLE}"
            )
        case TokenRetrievalError() | SSOError():
            return InputError(f"{where}: {error}; log in again")
        case ParamValidationError():
            return InputError(f"{where}: {_BUCKET_NAMES}")
        case _:
            return StoreError(f"{where}: no proper answer from {endpoint}: {error}")
