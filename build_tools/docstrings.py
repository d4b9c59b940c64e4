"""How the docstrings of this house are read for the site."""

import re
from typing import Any

import griffe


class AsWritten(griffe.Extension):
    """Knows the section ``Example:``, where griffe's Google style has ``Examples:`` alone, and the roles of Sphinx."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
