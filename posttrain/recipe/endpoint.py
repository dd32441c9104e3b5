"""A model that a server answers for, as a recipe names it."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

CARRIER = ("endpoint", "api_key_env", "concurrency", "timeout", "patience")
"""Keys that say how a model is reached, not which it is: another address gives the same answers."""


class EndpointSpec(BaseModel):
    """A model behind an OpenAI-compatible server (vLLM's, `posttrain serve`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    endpoint: str = Field(description="the server's base URL, as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1, description="the name under which the server has the model")
    api_key_env: str | None = Field(default=None, description="the environment variable that holds the server's key")
    tokenizer: str | None = Field(
        default=None, description="a copy of its tokenizer (directory or hub id); default: the student's is the same"
    )
    concurrency: int = Field(default=128, gt=0, description="requests in flight at once")
    timeout: float = Field(default=600.0, gt=0.0, description="seconds that one request may take")
    patience: float = Field(
        default=120.0, ge=0.0, description="seconds that a request is tried again where the server is down or busy"
    )

    @field_validator("endpoint")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{value!r} is no address of a server; write it as http://127.0.0.1:8000/v1")
        if parts.query or parts.fragment:
            raise ValueError(f"{value!r} is no base URL: leave out what follows the path")
        return value.rstrip("/") + ("" if parts.path.strip("/") else "/v1")

    def identity(self) -> dict[str, Any]:
        """Which model this is, wherever it is served."""
        return {key: value for key, value in self.model_dump().items() if key not in CARRIER}

    def key(self) -> str | None:
        """The server's key; None where none is named, or the variable is not set."""
        return os.environ.get(self.api_key_env) if self.api_key_env else None
