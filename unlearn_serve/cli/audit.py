"""Commands on logs: verify-audit, receipt, verify-receipt."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from unlearn_serve.cli.store import StoreOption
from unlearn_serve.cli.trust import SignOption, TrustedOption, actor, open_to_write
from unlearn_serve.errors import AuditError
from unlearn_serve.format.chain import Fault, head_of
from unlearn_serve.format.keys import read_public_key


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command(name="verify-audit")(verify_audit)
    app.command()(receipt)
    app.command(name="verify-receipt")(verify_receipt)


def verify_audit(
    logs: Annotated[list[Path] | None, typer.Argument(help="Servers' audit.jsonl files.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Also check the store's own log, and the files against its channels.")
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="A head that was noted earlier, may be repeated: some log must hold it.")
    ] = None,
    trusted_key: TrustedOption = None,
) -> None:
    """Find edits, removals, insertions and another order in audit logs; exits with 1 where there are any."""
    from unlearn_serve.audit import ServerLog, missing_heads

    if not logs and store is None:
        raise AuditError("verify-audit: expected audit.jsonl files, or --store, got neither")
    opened = open_to_write(store, None, trusted_key)[0] if store else None
    faults: list[Fault] = []
    chains: list[list[bytes]] = []
    for path in logs or []:
        log = ServerLog.read(path)
        faults += log.faults(opened)
        chains.append(list(log.lines))
        typer.echo(f"{path}: {log.head.seq} records, head {log.head.digest}")
    if opened is not None:
        records = [data for _, data in opened.audit_records()]
        faults += opened.audit_faults()
        chains.append(records)
        typer.echo(f"{opened.url}: {len(records)} records, head {head_of(records).digest}")
    faults += missing_heads(head or [], chains)
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults:
        raise AuditError(f"{len(faults)} fault{'s' * (len(faults) > 1)} found")
    typer.echo("ok")


def receipt(
    deletion_id: Annotated[str, typer.Argument(help="Id of the deletion request.")],
    store: StoreOption,
    audit: Annotated[list[Path] | None, typer.Option("--audit", help="A server's audit.jsonl, repeatable.")] = None,
    requested: Annotated[
        datetime | None, typer.Option(help="When the request came, UTC; neither store nor server knows.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Writes OUT.json, OUT.html and, when signed, OUT.sig.")] = Path("receipt"),
    sign: SignOption = None,
) -> None:
    """Write a deletion request's receipt: when trained, evaluated, published, and live where since when."""
    from unlearn_serve.audit import ServerLog, issue_receipt, receipt_page, sign_receipt
    from unlearn_serve.format.atomic import write_atomically
    from unlearn_serve.format.keys import read_signing_key
    from unlearn_serve.store import Store

    signer = read_signing_key(sign) if sign else None
    issued = issue_receipt(
        Store.open(store),
        deletion_id,
        [ServerLog.read(path) for path in audit or []],
        issued_by=actor(),
        requested_at=requested.replace(tzinfo=UTC) if requested else None,
    )
    path = out.with_name(f"{out.name}.json")
    write_atomically(path, issued.to_bytes())
    if signer is not None:
        sign_receipt(issued, path, signer)
    page = receipt_page(issued, signed_by=signer.public if signer else None)
    write_atomically(path.with_suffix(".html"), page.encode())
    for log in issued.logs:
        for fault in log.faults:
            typer.echo(f"fault, named in the receipt: {fault}", err=True)
    typer.echo(path)


def verify_receipt(
    path: Annotated[Path, typer.Argument(help="A receipt's JSON file; its .sig lies beside it.")],
    trusted_key: Annotated[list[Path], typer.Option("--trusted-key", help="Public key to trust, may be repeated.")],
) -> None:
    """Check that a trusted key signed a receipt as it is; exits with 1 where none did."""
    from unlearn_serve.audit import read_receipt

    found = read_receipt(path, [read_public_key(key) for key in trusted_key])
    typer.echo(
        f"ok: receipt of {found.deletion_id}, issued {found.issued_at:%Y-%m-%d %H:%M:%S} UTC by {found.issued_by}"
    )
