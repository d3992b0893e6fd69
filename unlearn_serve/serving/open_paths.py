"""The paths that clients may use without the admin key. What is not listed is the operator's, also where it is new.

Paths of models that only pool are not here: this plugin serves models that generate.

vLLM's --api-key guards those of them that it guards: the ones under /v1, /v2, /inference and /cohere.
"""

WATCHING = (
    "/health",
    "/ping",
    "/load",
    "/version",
    "/metrics",
    "/kv_event_sources",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/static",
)
"""They change nothing."""

INFERENCE = (
    "/v1/models",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/v1/messages",
    "/v1/messages/render",
    "/v1/messages/count_tokens",
    "/v1/systemone",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/realtime",
    "/cohere/v2/chat",
    "/cohere/v2/chat/render",
    "/inference/v1/generate",
    "/invocations",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
)
"""They compute for one client, and change nothing for another."""

OPEN_PATHS = frozenset((*WATCHING, *INFERENCE))
