"""A folder of `equicat serve`, and a browser that has opened its page."""

import pytest
from serving import BASE, KEY, Serving


@pytest.fixture
def serving(tmp_path) -> Serving:
    return Serving.of(tmp_path / "screenings")


@pytest.fixture
def client(serving):
    """A browser on this machine that has opened the address of the page."""
    pytest.importorskip("starlette", reason="equicat[serve] is not installed")
    from starlette.testclient import TestClient

    from equicat.serve.app import make_app

    app = make_app(serving.home, serving.model, serving.runner, KEY)
    browser = TestClient(app, base_url=BASE, client=("127.0.0.1", 50000), headers={"Origin": BASE})
    assert browser.get("/", params={"key": KEY}).status_code == 200
    return browser
