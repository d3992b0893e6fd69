"""Several servers on one channel, as an operator sees them: who they are, what each says, when all are live."""

from unlearn_serve.fleet.ask import Answer, ask_all
from unlearn_serve.fleet.report import Report, State, Target, judge, newest
from unlearn_serve.fleet.servers import Server, read_fleet, require_admin_keys, servers_at
from unlearn_serve.fleet.wait import wait_until_live

__all__ = [
    "Answer",
    "Report",
    "Server",
    "State",
    "Target",
    "ask_all",
    "judge",
    "newest",
    "read_fleet",
    "require_admin_keys",
    "servers_at",
    "wait_until_live",
]
