"""Errors over HTTP, in vLLM's form: for what answers before vLLM's own handlers, and for the OpenAPI."""

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

from unlearn_serve.serving.vllm_internals import without_paths


class ErrorInfo(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(BaseModel):
    """Body of every answer with a status of 400 and above."""

    error: ErrorInfo


def error_answer(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return the answer; `kind` is the status's phrase where none is given, and paths in `message` are left out."""
    info = ErrorInfo(
        message=without_paths(message),
        type=kind or HTTPStatus(status).phrase,
        param=param,
        code=HTTPStatus(status).value,
    )
    return JSONResponse(ErrorAnswer(error=info).model_dump(), status, headers=headers)


class FormKeepingRoute(APIRoute):
    """Raises FastAPI's HTTPException where its parser raises Starlette's, which vLLM's handlers leave in another form.

    A body that is not UTF-8 is such a case.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of this route."""
        handler = super().get_route_handler()

        async def keep_to_the_form(request: Request) -> Response:
            try:
                return await handler(request)
            except HTTPException:
                raise
            except StarletteHTTPException as error:
                raise HTTPException(error.status_code, error.detail) from error

        return keep_to_the_form


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` for errors with these statuses."""
    return {status: {"model": ErrorAnswer} for status in statuses}
