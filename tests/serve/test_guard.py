"""Who is answered: this machine, under its own name, with the key; changes only from the page itself."""

import pytest

pytest.importorskip("starlette", reason="equicat[serve] is not installed")

from serving import BASE, KEY, SMALL
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from equicat.serve.app import make_app


def browser(serving, base=BASE, address="127.0.0.1", **headers):
    return TestClient(
        make_app(serving.home, serving.model, serving.runner, KEY),
        base_url=base,
        client=(address, 50000),
        headers=headers,
        follow_redirects=False,
    )


def refused(answer):
    return answer.status_code == 403 and "Traceback" not in answer.text and answer.text.count("\n") == 1


@pytest.mark.parametrize("address", ["192.168.1.7", "10.0.0.1", "::ffff:192.168.1.7", "testclient"])
def test_another_machine_is_refused(serving, address):
    assert refused(browser(serving, address=address).get("/", params={"key": KEY}))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "localhost@evil.example", ""]
)
def test_another_name_of_this_machine_is_refused(serving, host):
    """DNS rebinding: a page of evil.example, whose name was made to point to 127.0.0.1."""
    assert refused(browser(serving, Host=host).get("/", params={"key": KEY}))


@pytest.mark.parametrize("host", ["localhost:8420", "127.0.0.1:9999", "[::1]:8420", "localhost"])
def test_this_machine_is_answered_under_its_names(serving, host):
    answer = browser(serving, Host=host).get("/", params={"key": KEY})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


@pytest.mark.parametrize("path", ["/", "/api/jobs", "/assets/page.js", "/api/jobs/1/table.csv", "/nowhere"])
def test_nothing_is_told_without_the_key(serving, path):
    client = browser(serving)
    assert refused(client.get(path))
    assert refused(client.get(path, params={"key": "guessed"}))
    client.cookies.set(next(iter(opened(serving).cookies.keys())), "guessed")
    assert refused(client.get(path))


def opened(serving, **headers):
    client = browser(serving, **headers)
    client.get("/", params={"key": KEY})
    return client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "https://127.0.0.1:8420"},
        {"Origin": BASE, "Sec-Fetch-Site": "cross-site"},
        {"Origin": BASE, "Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_changes_come_from_the_page_itself(serving, headers):
    client = opened(serving)
    assert refused(client.post("/api/jobs", json=SMALL, headers=headers))
    assert refused(client.post("/api/uploads?kind=slab&name=x.xyz", content=b"1\n\nCu 0 0 0\n", headers=headers))
    assert refused(client.delete("/api/jobs/1", headers=headers))
    assert serving.jobs.all() == []
    assert list(serving.home.uploads.iterdir()) == []
    fine = client.post("/api/jobs", json=SMALL, headers={"Origin": BASE, "Sec-Fetch-Site": "same-origin"})
    assert fine.status_code == 201


def test_the_page_cannot_be_framed_and_loads_from_here_only(serving):
    headers = opened(serving).get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
    assert browser(serving).get("/").headers["content-security-policy"] == policy  # refusals have them, too


def test_other_protocols_are_closed(serving):
    with pytest.raises(WebSocketDisconnect), opened(serving).websocket_connect("/"):
        pass
