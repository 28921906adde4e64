"""The page `/docs`: the operations of the service, from its OpenAPI document, without a script of another host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from progeo.pages.page import Page, text_page


def documentation_page(document: Mapping[str, Any], *, has_token: bool) -> Page:
    """Render the page.

    Args:
        document: in OpenAPI 3.1.
        has_token: whether the service wants a token.
    """
    operations = [
        {
            "name": f"{method.upper()} {path}",
            "text": operation["description"],
            "inputs": list(_inputs(operation)),
            "answers": [(status, each["description"]) for status, each in operation["responses"].items()],
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = document["components"]["schemas"]
    objects = {name: _fields(schemas[name]) for name in ("Answer", "PhotoAnswer", "MatchAnswer")}
    return text_page(
        "documentation.html",
        title="The HTTP interface",
        version=document["info"]["version"],
        operations=operations,
        objects=objects,
        has_token=has_token,
    )


def _inputs(operation: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """List the name, kind and meaning of what a request gives."""
    for each in operation.get("parameters", []):
        schema = each["schema"]
        range_ = [str(schema[key]) for key in ("minimum", "maximum") if key in schema]
        yield each["name"], each["in"], each.get("description", " to ".join(range_))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, schema in content["schema"]["properties"].items():
            yield name, "files" if schema["type"] == "array" else "text", schema["description"]


def _fields(schema: Mapping[str, Any]) -> list[Sequence[str]]:
    return [(name, _kind(each)) for name, each in schema["properties"].items()]


def _kind(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list of numbers"
    return schema["type"]
