"""Where data lie, as the user writes it: a folder (``runs``, ``~/runs``, ``file:///runs``) or ``s3://bucket/prefix``.

Locations are ``str``, not ``Path``: a ``Path`` turns ``s3://bucket`` into ``s3:/bucket``.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from shards.errors import InputError


def scheme(uri: str) -> str:
    """What stands before ``:/``; nothing for a path."""
    found = re.match(r"([A-Za-z][\w+.-]+):/", uri)
    return found[1] if found else ""


def is_local(uri: str) -> bool:
    """Whether it is a folder, which other machines see only where it is shared with them."""
    return scheme(uri) in ("", "file")


def local_path(uri: str) -> Path:
    """The folder at a local location, from the root on; ``~`` is the home of whoever gives the command.

    Raises:
        InputError: there is nothing in it, it names a host, or a user who has no home here.
    """
    if not uri:
        raise InputError("the location is empty; give a folder or s3://bucket/prefix")
    if scheme(uri) == "file":
        folder = uri.removeprefix("file://")
        if not folder.startswith("/"):
            raise InputError(f"{uri}: names a host; write file:///folder, with three slashes")
        return Path(unquote(folder))
    try:
        return Path(uri).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{uri}: no such home on this machine; write the folder from the root on") from error


def absolute_uri(uri: str) -> str:
    """The same location for processes in other folders and of other users: a path from the root on, else as it is."""
    # An empty location is left for open_store to refuse; it is not the folder that the command is given in.
    if not uri or scheme(uri):
        return uri
    # Not Path.resolve, which raises what nobody explains where a link leads back to its own folder.
    return os.path.realpath(local_path(uri))
