"""Fetching images by URL: what is allowed, and every way around it that is refused. A real server on loopback."""

import asyncio
import ipaddress
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ureca.serving.api.errors import RequestError
from ureca.serving.api.fetch import fetch_image, is_public
from ureca.serving.settings import ImageUrls


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 (the base class's)
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(3)
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        try:
            for _ in range(100 if self.path == "/large" else 1):
                self.wfile.write(b"picture" if self.path != "/large" else b"x" * 1000)
        except OSError:
            pass  # the client has seen enough

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def pages():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def here(pages) -> str:
    return f"http://localhost:{pages.server_port}"


def fetch(url: str, *, loopback: bool = True, **settings: object) -> bytes:
    allowed = ImageUrls(**{"allowed_hosts": ("localhost",), "allow_http": True, "timeout_seconds": 5, **settings})
    allows = {"allows": lambda address: address.is_loopback} if loopback else {}
    return asyncio.run(fetch_image(url, allowed, **allows))


def refusal(url: str, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        fetch(url, **options)
    assert caught.value.status in (400, 413)
    assert caught.value.param == "image"
    return str(caught.value)


def test_an_allowed_host_s_image_is_fetched_without_credentials(pages):
    assert fetch(f"{here(pages)}/a.jpg?size=2#top") == b"picture"
    [(path, headers)] = pages.asked
    assert path == "/a.jpg?size=2"
    assert headers["Host"] == f"localhost:{pages.server_port}"
    assert not {"Authorization", "Cookie"} & set(headers)


def test_a_redirect_is_followed_to_allowed_hosts_only(pages):
    assert fetch(f"{here(pages)}/to/{here(pages)}/a.jpg") == b"picture"
    assert fetch(f"{here(pages)}/to//a.jpg") == b"picture"
    for target in (f"http://127.0.0.1:{pages.server_port}/a.jpg", "file:///etc/passwd", "http://169.254.169.254/"):
        before = len(pages.asked)
        assert "not fetched" in refusal(f"{here(pages)}/to/{target}")
        assert len(pages.asked) == before + 1
    loop = "/to/" * 5 + "/a.jpg"
    assert "redirected more than 3 times" in refusal(f"{here(pages)}{loop}")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_an_allowed_name_with_a_private_address_is_refused(pages, host):
    said = refusal(f"http://{host}:{pages.server_port}/a.jpg", loopback=False)
    assert "which is not public" in said
    assert pages.asked == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/a.jpg", "example.org: URLs"),
        ("http://localhost.example.org/a.jpg", "URLs"),
        ("http://notlocalhost/a.jpg", "URLs"),
        ("http://localhost@example.org/a.jpg", "a user name"),
        ("http://example.org\\@localhost/a.jpg", "backslash"),
        ("http://localhost\\.example.org/a.jpg", "a backslash"),
        ("http:///a.jpg", "no host"),
        ("http://[::1/a.jpg", "URL"),
        ("http://localhost:99999/a.jpg", "URL"),
        ("ftp://localhost/a.jpg", "URLs"),
        ("http://local\u212aost/a.jpg", "invalid characters"),
        ("http://localhost/a b.jpg", "invalid characters"),
    ],
)
def test_a_url_that_is_not_plainly_of_an_allowed_host_is_refused(url, said):
    assert said in refusal(url)


def test_nothing_is_fetched_as_it_comes():
    with pytest.raises(RequestError, match="URLs"):
        asyncio.run(fetch_image("https://example.org/a.jpg", ImageUrls()))
    assert "scheme http are not fetched" in refusal("http://localhost/a.jpg", allow_http=False)


def test_what_is_late_large_or_missing_is_refused(pages):
    started = time.monotonic()
    assert "did not send it within 0.5 s" in refusal(f"{here(pages)}/slow", timeout_seconds=0.5)
    assert time.monotonic() - started < 2.5
    assert "has more than 2000 bytes" in refusal(f"{here(pages)}/large", max_bytes=2000)
    assert "answered 404" in refusal(f"{here(pages)}/none")
    closed = pages.server_port
    pages.shutdown()
    pages.server_close()
    assert "can't be reached" in refusal(f"http://localhost:{closed}/a.jpg")


def test_subdomains_are_allowed_where_the_list_says_so():
    for host, named in (("a.localhost", True), ("localhost", False), ("evil-localhost", False)):
        said = refusal(f"http://{host}:1/a.jpg", allowed_hosts=(".localhost",), timeout_seconds=1)
        assert ("not fetched" not in said) == named


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 (refused)
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) == public
