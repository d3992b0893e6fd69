"""vLLM's own app with this plugin attached, as a server builds it, but with no engine behind it."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from support.server import API_KEY

INFERENCE_TASKS = ("generate",)


def build_public_app(*flags: str, tasks: Sequence[str] = INFERENCE_TASKS, **settings: Any) -> Any:
    """Build it from vLLM's flags and our settings; its follower knows what is live, and nothing else."""
    from vllm.entrypoints.launchers.app import build_app

    from unlearn_serve.serving.live import Live

    app = build_app(parse_serve(*flags, **settings), tuple(tasks))
    app.state.unlearning = SimpleNamespace(live=Live(channel="production"))
    app.state.unlearning_routes = None
    return app


def parse_serve(*flags: str, **settings: Any) -> Any:
    """Return what `vllm serve model FLAGS` parses to, with an API key and our settings."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    ours = ["--additional-config", json.dumps({"unlearn": {"store": "/no/such/store", **settings}})]
    return parser.parse_args(["serve", "model", "--api-key", API_KEY, *ours, *flags])
