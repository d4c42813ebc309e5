"""JSON from files that others may have written: parsed strictly, and held against a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from diffusion_fast import _checks

MAX_MESSAGE = 160  # of the validator, which quotes what it refuses


def parse(text: str | bytes, schema: dict[str, Any]) -> Any:
    """The value of a JSON text; ValueError, with the place, for what is no JSON or not of the schema, whose
    integers are written as such: 96.0 would go on as a float."""
    import jsonschema  # 0.1 s, and few calls need it

    usual = jsonschema.Draft202012Validator
    types = usual.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    validator = jsonschema.validators.extend(usual, type_checker=types)
    fault = next(validator(schema).iter_errors(value), None)
    if fault is not None:
        message = fault.message if len(fault.message) <= MAX_MESSAGE else f"{fault.message[:MAX_MESSAGE]}..."
        raise ValueError(f"at {fault.json_path}: {message}")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def json_object(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """A dictionary that is the same when it is read again; {} for None."""
    accepted = "a dictionary with string keys and JSON values (finite numbers, strings, lists, ...)"
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _checks.bad_type(name, value, accepted)
    try:
        same = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _checks.bad_type(name, value, accepted) from error
    if same != dict(value):  # such as keys that are numbers, or tuples, which come back as something else
        raise _checks.bad_value(name, value, accepted)
    return same
