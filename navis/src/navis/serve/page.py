"""The OpenAPI description as a page of HTML, made here: no scripts, nothing from elsewhere."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup, escape

Json = Mapping[str, Any]

HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def render(described: Json) -> str:
    """Give the page of an OpenAPI description."""
    schemas = described.get("components", {}).get("schemas", {})
    operations = [
        _operation(method, path, operation, schemas)
        for path, of_path in described["paths"].items()
        for method, operation in of_path.items()
    ]
    return _template().render(
        info=described["info"], operations=operations, token="security" in described
    )


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("navis.serve")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    made.filters.update(markdown=markdown, inline=_inline)
    return made.get_template("docs.html.j2")


def _operation(method: str, path: str, operation: Json, schemas: Json) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {})
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "says": operation.get("description", operation["summary"]),
        "parameters": [
            {
                "name": p["name"],
                "place": p["in"],
                "type": type_name(p["schema"], schemas),
                "says": p["schema"].get("description", ""),
            }
            for p in operation.get("parameters", ())
        ],
        "bodies": _contents(body, schemas),
        "answers": [
            {
                "status": status,
                "says": answer["description"],
                "bodies": _contents(answer.get("content", {}), schemas) if status == "200" else [],
            }
            for status, answer in operation["responses"].items()
        ],
    }


def _contents(content: Json, schemas: Json) -> list[dict[str, Any]]:
    found = []
    for media_type, of_type in content.items():
        schema = _resolved(of_type.get("schema", {}), schemas)
        examples = schema.get("examples", ())
        found.append(
            {
                "media_type": media_type,
                "says": schema.get("description", ""),
                "fields": list(_fields(schema, schemas)),
                "example": json.dumps(examples[0]) if examples else "",
            }
        )
    return found


def _fields(schema: Json, schemas: Json) -> Iterable[dict[str, Any]]:
    needed = schema.get("required", ())
    for name, of_field in schema.get("properties", {}).items():
        yield {
            "name": name,
            "type": type_name(of_field, schemas),
            "needed": name in needed,
            "default": json.dumps(of_field["default"])
            if of_field.get("default") is not None
            else "",
            "says": of_field.get("description", ""),
        }
        for inner in _fields(_resolved(of_field, schemas), schemas):
            yield inner | {"name": f"{name}.{inner['name']}"}


def _resolved(schema: Json, schemas: Json) -> Json:
    # What may be left out is written as itself or null.
    given = [s for s in schema.get("anyOf", ()) if s.get("type") != "null"] or [schema]
    name = given[0].get("$ref", "").rpartition("/")[2]
    return schemas[name] if name else given[0]


def type_name(schema: Json, schemas: Json) -> str:
    """Say a schema's type in words: `list of list of number`."""
    schema = _resolved(schema, schemas)
    for key in ("enum", "const"):
        if key in schema:
            values = schema[key] if key == "enum" else [schema[key]]
            return " or ".join(json.dumps(value) for value in values)
    if schema.get("type") == "array":
        return f"list of {type_name(schema.get('items', {}), schemas)}"
    kind = str(schema.get("type", "anything"))
    low = schema.get("minimum")  # FastAPI keeps bounds as floats
    return kind if low is None else f"{kind}, {low:g} or more"


def markdown(text: str) -> Markup:
    """Render the little that our descriptions use: paragraphs, tables, `code`."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if all(line.startswith("|") for line in lines):
            parts.append(_table(lines))
        else:
            parts.append(Markup("<p>{}</p>").format(_inline(" ".join(lines))))
    return Markup("\n").join(parts)


def _table(lines: list[str]) -> Markup:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, body = rows[0], [row for row in rows[1:] if set("".join(row)) - set("-: ")]

    def row_of(tag: str, cells: list[str]) -> Markup:
        element = Markup(f"<{tag}>{{}}</{tag}>")
        joined = Markup("").join(element.format(_inline(c)) for c in cells)
        return Markup("<tr>{}</tr>").format(joined)

    inside = Markup("").join([row_of("th", head), *(row_of("td", row) for row in body)])
    return Markup("<table>{}</table>").format(inside)


def _inline(text: str) -> Markup:
    words = re.split(r"`([^`]+)`", text)
    marked = (
        Markup("<code>{}</code>").format(w) if i % 2 else escape(w) for i, w in enumerate(words)
    )
    return Markup("").join(marked)
