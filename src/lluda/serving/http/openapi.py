"""The OpenAPI document, made from the routes and the models of their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from lluda import __version__
from lluda.serving.http.route import ApiRoute

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document(routes: Sequence[ApiRoute]) -> dict[str, Any]:
    """OpenAPI 3.1 of all routes."""
    bodies = {model for route in routes for model in (route.body, route.form) if model is not None}
    ordered = sorted(bodies, key=lambda model: model.__name__)
    references, definitions = models_json_schema([(model, "validation") for model in ordered], ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for route in routes:
        schemas = {model: references[model, "validation"] for model in (route.body, route.form) if model is not None}
        paths.setdefault(re.sub(r":\w+}", "}", route.path), {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lluda", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: ApiRoute, schemas: dict[Any, Any]) -> dict[str, Any]:
    error_schema = {"$ref": _REFERENCE.format(model="Error")}
    error = {"description": "An error", "content": {"application/json": {"schema": error_schema}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer", "content": {kind: {} for kind in route.answers}},
            "default": error,
        },
    }
    names = re.findall(r"{(\w+)", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    content = {}
    if route.body is not None:
        content["application/json"] = {"schema": schemas[route.body]}
    if route.form is not None:
        content["multipart/form-data"] = {"schema": schemas[route.form]}
    if content:
        operation["requestBody"] = {"required": True, "content": content}
    return operation
