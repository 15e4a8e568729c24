"""The JSON schema of params.yaml: what editors complete, explain and underline.

Made from the models, so that it knows the methods of this installation. The first line of every
preset points to ``place_of`` a project folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from kdci.config.params import Params
from kdci.store.artifacts import replace_file
from kdci.store.layout import Layout

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What editors know best; the models need no keyword that came later."""


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that say a key again in capitals."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema_text() -> str:
    """Return the schema as the file has it."""
    schema = {"$schema": DIALECT, **Params.model_json_schema(schema_generator=_Untitled)}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def place_of(root: Path) -> Path:
    """Return where the params.yaml of a project folder looks for its schema."""
    return Layout(root, "").work / "params.schema.json"


def write_schema(file: Path) -> None:
    """Write the schema.

    Raises:
        StorageError: It can not be written.
    """
    replace_file(file, schema_text().encode())
