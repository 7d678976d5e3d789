"""Whether anything asks for an address outside this machine."""

import ipaddress
import sys
from typing import Any
from urllib.parse import urlsplit

ASKED: list[str] = []
EVENTS = {
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
    "socket.gethostbyname", "urllib.Request", "ftplib.connect", "smtplib.connect",
}  # fmt: skip
OWN = {"localhost", "", None}


def is_own(host: Any) -> bool:
    """Whether a host is this machine.

    >>> [is_own(host) for host in ("127.0.0.1", "localhost", "::1", "pypi.org", "8.8.8.8", None)]
    [True, True, True, False, False, True]
    """
    name = host.decode() if isinstance(host, bytes) else host
    if name in OWN:
        return True
    try:
        address = ipaddress.ip_address(str(name).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def host_of(event: str, arguments: tuple[Any, ...]) -> Any:
    """The host in the arguments of an audit event; None for what has no host."""
    if event.startswith(("socket.connect", "socket.send")):
        address = arguments[1]
        return address[0] if isinstance(address, tuple) else None  # else of a file, as Unix has
    if event == "urllib.Request":
        return urlsplit(arguments[0]).hostname
    return arguments[1] if event.endswith("lib.connect") else arguments[0]


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Note who asks for another machine."""
    if event in EVENTS and not is_own(host := host_of(event, arguments)):
        ASKED.append(f"{event} {host}")


def watch() -> None:
    """Note it from here on, in this process; it cannot be undone."""
    sys.addaudithook(listen)
