from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from starlette.testclient import TestClient

from navis.serve import page
from navis.serve.app import create_app
from navis.serve.engine import Engine


def body_of(described: Any, path: str) -> Any:
    content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].removeprefix("#/components/schemas/")
    return described["components"]["schemas"][name]


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=|url\(|https?://", answer.text)
    parser = Balanced()
    parser.feed(answer.text)
    assert not parser.open


def test_every_endpoint_is_described(client: TestClient) -> None:
    described, text = client.get("/openapi.json").json(), client.get("/docs").text
    assert len(described["paths"]) == 9
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in text
            assert operation["description"]
            assert "422" not in operation["responses"] or (
                operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
                == "#/components/schemas/Wrong"
            )
    for path in ("/v1/search", "/v1/insert", "/v1/delete"):
        schema = body_of(described, path)
        assert schema["examples"]
        assert schema["additionalProperties"] is False
    assert "#/$defs" not in json.dumps(described)
    assert "filter.between" in text
    assert "NVS1" in text
    assert "list of list of number" in text


def test_the_examples_are_valid(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path in ("/v1/search", "/v1/insert", "/v1/delete"):
        answer = client.post(path, json=body_of(described, path)["examples"][0])
        assert answer.status_code == 200 or "dimensions" in answer.json()["error"]


def test_a_token_is_part_of_the_description(engine: Engine) -> None:
    described = create_app(engine, token="correct-horse-battery").openapi()
    assert described["security"] == [{"token": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert "Authorization: Bearer" in page.render(described)
    assert "security" not in create_app(engine).openapi()


def test_markdown_is_escaped() -> None:
    html = page.markdown("a `<b>` & <i>\n\n| x | y |\n|---|---|\n| `1` | 2 |")
    assert html == (
        "<p>a <code>&lt;b&gt;</code> &amp; &lt;i&gt;</p>\n"
        "<table><tr><th>x</th><th>y</th></tr><tr><td><code>1</code></td><td>2</td></tr></table>"
    )
