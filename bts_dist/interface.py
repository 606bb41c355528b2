"""By which network interface the ranks of a training reach each other.

Gloo listens at whatever address the resolver gives for the machine's own name.  Where that is a loopback address, as
Debian's installer writes it into ``/etc/hosts`` (127.0.1.1), ranks of other machines are sent to an address at which
they find only themselves.  NCCL looks at the interfaces and needs no help.
"""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from ipaddress import ip_address

VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
"""Linux asks an interface's address by this number (netdevice(7))."""


def use_interface(address: str) -> None:
    """Have Gloo listen on the interface that has ``address``, unless the user has named one.

    An address that no interface has, as behind a translating router, and a loopback address change nothing.
    """
    if ip_address(address).is_loopback:
        return
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The network interface whose IPv4 address this is."""
    return next((name for _, name in socket.if_nameindex() if _address(name) == address), None)


def address_towards(host: str) -> str | None:
    """This machine's IPv4 address on the way to ``host``; None where there is no way, or the name is not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return None


def _address(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
        return socket.inet_ntoa(answer[20:24])
    return None
