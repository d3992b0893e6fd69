"""The store commands, end to end over a real folder, and how errors look."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.adapters import write_random_adapter
from support.command_line import Run
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_serve import __version__
from unlearn_serve.serving.records import AuditLog, SwapRecord, now
from unlearn_serve.store import Store


def said(run: Run, *arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.code == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    return [
        write_random_adapter(folder / "base", folder / f"adapter{seed}", seed=seed, deletion_id=f"case-{seed}")
        for seed in range(2)
    ]


def test_publish_promote_rollback_list_show_verify(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    first, second = (said(run, "publish", adapter, "--store", store) for adapter in adapters)
    assert len(first) == 64
    assert said(run, "promote", first[:10], "--channel", "production", "--store", store).endswith(
        f"generation 1 -> {first}"
    )
    to_second = ("promote", second, "--channel", "production", "--store", store, "--reason", "case-1 asks")
    assert "generation 1 covers case-0" in run(*to_second).stderr
    said(run, *to_second, "--allow-uncover")
    back = ("rollback", "--channel", "production", "--store", store)
    assert "DropsDeletions" in run(*back).stderr
    assert said(run, *back, "--allow-uncover", "--reason", "worse").endswith(f"generation 3 -> {first}")

    listed = said(run, "list", "--store", store)
    assert "case-0" in listed
    assert "rollback" in listed
    assert "(uncovers" in listed
    assert json.loads(said(run, "show", second, "--store", store))["deletion_ids"] == ["case-1"]
    assert said(run, "verify", "--store", store) == "ok"
    assert [entry.reason for entry in Store.open(str(store)).history("production")] == ["", "case-1 asks", "worse"]


def test_keygen_sign_publish_promote_rollback_verify_with_keys(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    store, old, new, other = (tmp_path / name for name in ("store", "old", "new", "other"))
    public = {key: said(run, "keygen", key) for key in (old, new, other)}
    assert len(set(public.values())) == 3
    assert "KeyFileError" in run("keygen", old).stderr
    at = ("--store", store)

    first = said(run, "publish", adapters[0], *at)
    assert "Unsigned" in run("promote", first, *at, "--sign", old).stderr
    assert said(run, "sign", first, *at, "--key", old) == f"{first} signed by {public[old]}"
    said(run, "promote", first, *at, "--sign", old)
    second = said(run, "publish", adapters[1], *at, "--sign", old)
    change = ("--allow-uncover", "--reason", "test")
    said(run, "promote", second, *at, "--sign", old, *change)
    assert "Unsigned" in run("promote", first, *at, "--trusted-key", f"{old}.pub").stderr
    assert "Unsigned" in run("rollback", *at, "--sign", new, *change).stderr
    assert said(run, "rollback", *at, "--sign", new, "--trusted-key", f"{old}.pub", *change).endswith(first)

    assert said(run, "verify", *at, "--trusted-key", f"{old}.pub", "--trusted-key", f"{new}.pub") == "ok"
    assert "3 problems found" in run("verify", *at, "--trusted-key", f"{other}.pub").stderr
    rotate = ("sign", "--channel", "production", *at, "--key", other, "--trusted-key", f"{new}.pub")
    assert "Unsigned" in run(*rotate).stderr, "the release behind the entry is signed by the old key only"
    assert "generation 3" in said(run, *rotate, "--trusted-key", f"{old}.pub")
    assert "KeyFileError" in run("verify", *at, "--trusted-key", old).stderr
    assert "one of the two" in run("sign", *at, "--key", old).stderr


def test_gc_lists_and_only_with_delete_removes(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    kept, lost = (said(run, "publish", adapter, "--store", tmp_path) for adapter in adapters)
    said(run, "promote", kept, "--store", tmp_path)
    assert said(run, "gc", "--store", tmp_path) == "0 objects, 0 bytes would be removed; remove with --delete"
    now = ("gc", "--store", tmp_path, "--min-age-days", "0")
    assert said(run, *now).splitlines()[0].startswith(f"releases/{lost}/manifest.json: a release that no channel")
    assert said(run, "show", lost, "--store", tmp_path)
    assert "3 objects" in said(run, *now, "--delete").splitlines()[-1]
    assert "ReleaseNotFound" in run("show", lost, "--store", tmp_path).stderr
    assert said(run, "verify", "--store", tmp_path) == "ok"


def test_verify_audit_and_receipt(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    store, key, log, out = tmp_path / "store", tmp_path / "ops", tmp_path / "audit.jsonl", tmp_path / "receipt"
    said(run, "keygen", key)
    digest = said(run, "publish", adapters[0], "--store", store, "--sign", key)
    said(run, "promote", digest, "--store", store, "--sign", key)
    live = {"channel": "production", "ok": True, "release": digest, "generation": 1, "deletion_ids": ("case-0",)}
    AuditLog(log).append(SwapRecord(event="start", at=now(), **live))
    trusted = ("--trusted-key", f"{key}.pub")
    checked = said(run, "verify-audit", log, "--store", store, *trusted).splitlines()
    assert checked[-1] == "ok"
    assert [line.split(": ")[1].split(",")[0] for line in checked[:-1]] == ["1 records", "2 records"]
    head = checked[1].rsplit(" ", 1)[1]

    asked = ("receipt", "case-0", "--store", store, "--audit", log, "--requested", "2026-01-02T03:04:05", "--out", out)
    assert said(run, *asked, "--sign", key).replace("\n", "") == f"{out}.json"
    written = json.loads((tmp_path / "receipt.json").read_bytes())
    assert (written["requested_at"], written["servers"][0]["until"]) == ("2026-01-02T03:04:05Z", None)
    assert "every byte verified for this receipt" in (tmp_path / "receipt.html").read_text()
    assert said(run, "verify-receipt", f"{out}.json", *trusted).startswith("ok: receipt of case-0")
    (tmp_path / "receipt.json").write_bytes((tmp_path / "receipt.json").read_bytes().replace(b"case-0", b"case-1"))
    assert "BadSignature" in run("verify-receipt", f"{out}.json", *trusted).stderr

    (store / "audit" / f"{2:020d}.json").unlink()
    cut = run("verify-audit", "--store", store, "--head", head)
    assert "no record of this move" in cut.stderr
    assert f"{head}: was the head of a log once" in cut.stderr
    assert "2 faults found" in cut.stderr.splitlines()[-1]
    log.write_text(log.read_text().replace('"ok":true', '"ok":tru'))
    assert "not a record, or half of one" in run("verify-audit", log).stderr
    for arguments in (("verify-audit",), ("verify-audit", tmp_path / "nowhere"), ("receipt", "x", "--store", store)):
        assert "AuditError" in run(*arguments).stderr


def test_errors_are_one_line_on_stderr_and_exit_1(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    digest = said(run, "publish", adapters[0], "--store", store)
    said(run, "promote", digest, "--store", store)
    (store / "releases" / digest / "adapter_model.safetensors").write_bytes(b"not weights")
    for arguments, message in [
        (("publish", tmp_path, "--store", store), "AdapterFileError"),
        (("promote", "0" * 64, "--store", store), "ReleaseNotFound"),
        (("promote", digest, "--store", store), "DigestError"),
        (("rollback", "--channel", "staging", "--store", store), "ChannelNotFound"),
        (("rollback", "--channel", "production", "--store", store), "nothing to roll back to"),
        (("promote", digest, "--channel", "../up", "--store", store), "channel: expected"),
        (("list", "--store", tmp_path / "nowhere"), "no such folder"),
        (("verify", "--store", store), "1 problem found"),
        (("serve", tmp_path / "model", "--store", tmp_path / "nowhere"), "error"),
        (("status", "--url", "http://127.0.0.1:9"), "no answer"),
    ]:
        done = run(*arguments)
        assert done.code == 1, (arguments, done.stdout)
        lines = done.stderr.strip().splitlines()
        assert message in lines[-1], (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_conflict_is_told(adapters: list[Path], tmp_path: Path, run: Run) -> None:
    digest = said(run, "publish", adapters[0], "--store", tmp_path)
    said(run, "promote", digest, "--store", tmp_path)
    done = run("promote", digest, "--store", tmp_path, "--expect-generation", "0")
    assert done.code == 1
    assert "ChannelConflict" in done.stderr


def test_the_module_is_the_command() -> None:
    """`python -m unlearn_serve.cli.app` and the console script are the same; both exit as `main` does."""
    command = [sys.executable, "-m", "unlearn_serve.cli.app", "--version"]
    assert (
        subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.strip() == __version__
    )
