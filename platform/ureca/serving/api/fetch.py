"""Fetch an image by URL, from hosts that the operator has allowed.

    URL ──scheme, host on the list──> resolve once ──every address public──> connect to that very address ──>
    status, size while it arrives ──redirect? from the start, with the remaining time

The connection uses the checked address, so a host name that changes its address in between gains nothing.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from ureca.serving.api.errors import RequestError
from ureca.serving.settings import ImageUrls

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: IPAddress) -> bool:
    """Return whether an address is public, including IPv4 addresses embedded in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        for inner in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
            if inner is not None and not is_public(inner):
                return False
        if address.is_site_local:  # deprecated, and global to Python
            return False
    return address.is_global and not address.is_multicast


class _ForbiddenAddressError(Exception):
    pass


async def fetch_image(url: str, settings: ImageUrls, *, allows: Callable[[IPAddress], bool] = is_public) -> bytes:
    """Fetch the file at an http(s) URL.

    Args:
        allows: predicate for addresses to connect to.

    Raises:
        RequestError: the host is not on the list, has an address that is not public, does not answer in time or with
            status 200, redirects too often or elsewhere, or sends too many bytes.
    """
    ends = asyncio.get_running_loop().time() + settings.timeout_seconds
    try:
        async with asyncio.timeout_at(ends):
            return await _follow(url, settings, allows)
    except TimeoutError as error:
        raise _refused(f"the host did not send it within {settings.timeout_seconds:g} s") from error
    except _ForbiddenAddressError as error:
        raise _refused(f"the host has the address {error}, which is not public") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ssl.SSLError) as error:
        raise _refused(f"the host can't be reached ({type(error).__name__})") from error


async def _follow(url: str, settings: ImageUrls, allows: Callable[[IPAddress], bool]) -> bytes:
    for _ in range(settings.max_redirects + 1):
        parts = _checked(url, settings)
        # A new pool per request: no connection is kept open for a host that one request named.
        async with httpcore.AsyncConnectionPool(network_backend=_CheckedNetwork(allows)) as pool:
            target = parts._replace(fragment="").geturl()
            headers = [("User-Agent", "ureca"), ("Accept", "image/*"), ("Host", parts.netloc)]
            async with pool.stream("GET", target, headers=headers) as response:
                if response.status in _REDIRECTS:
                    url = urljoin(url, _header(response.headers, b"location"))
                    continue
                if response.status != 200:
                    raise _refused(f"the host answered {response.status}")
                return await _limited(response, settings.max_bytes)
    raise _refused(f"it was redirected more than {settings.max_redirects} times")


def _checked(url: str, settings: ImageUrls) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _refused("it is no URL") from error
    schemes = ("https", "http") if settings.allow_http else ("https",)
    if parts.scheme not in schemes:
        raise _refused(f"URLs with scheme {parts.scheme or '(none)'} are not fetched by this service")
    if parts.username is not None or "\\" in url or not url.isascii() or any(each <= " " for each in url):
        raise _refused("it holds a user name, a backslash, or invalid characters")
    host = host.lower().rstrip(".")
    named = any(host == each.lower() or (each.startswith(".") and host.endswith(each.lower())) for each in
                settings.allowed_hosts)  # fmt: skip
    if not named:
        raise _refused(f"{host or 'no host'}: URLs of this host are not fetched by this service")
    if port is not None and port not in (80, 443) and not settings.allow_http:
        raise _refused(f"port {port} is not allowed")
    return parts


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses only, and to those that were checked. TLS still verifies the host's name."""

    def __init__(self, allows: Callable[[IPAddress], bool]) -> None:
        self._allows = allows
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)  # SOCK_STREAM
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        for address in addresses:
            if not self._allows(address):
                raise _ForbiddenAddressError(str(address))
        return await self._network.connect_tcp(str(addresses[0]), port, timeout, local_address, socket_options)


async def _limited(response: httpcore.Response, max_bytes: int) -> bytes:
    data = bytearray()
    async for piece in response.aiter_stream():
        data += piece
        if len(data) > max_bytes:
            raise RequestError(
                f"image: has more than {max_bytes} bytes. Scale it down.", status=413, kind="too_large", param="image"
            )
    return bytes(data)


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), "")


def _refused(finding: str) -> RequestError:
    return RequestError(
        f"image: {finding}. Send the file itself: data:image/jpeg;base64,…", kind="invalid_image", param="image"
    )
