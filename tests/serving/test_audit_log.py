"""A server's audit log: chained across restarts, processes and half-written lines."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unlearn_serve.format.chain import chain_faults, lines_of
from unlearn_serve.serving.records import AuditLog, SwapRecord, now


def record(generation: int) -> SwapRecord:
    return SwapRecord(event="swap", at=now(), channel="production", ok=True, release="0" * 64, generation=generation)


def faults(path: Path) -> list[str]:
    return [
        str(fault) for fault in chain_faults((f"{n}", line) for n, line in enumerate(lines_of(path.read_bytes()), 1))
    ]


def test_a_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    for start in (0, 2):
        log = AuditLog(path)
        for generation in (start, start + 1):
            log.append(record(generation))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]
    assert [SwapRecord.model_validate(line).generation for line in lines] == [0, 1, 2, 3]
    assert faults(path) == []


def test_half_a_line_stays_to_be_seen_and_nothing_is_written_onto_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path).append(record(1))
    with path.open("ab") as file:
        file.write(b'{"event":"swap","at')
    AuditLog(path).append(record(2))
    AuditLog(path).append(record(3))
    (fault,) = faults(path)
    assert fault.startswith("2: not a record, or half of one")
    assert len(path.read_bytes().splitlines()) == 4


def test_logs_of_one_file_share_one_chain(tmp_path: Path) -> None:
    """A server that is ending and its successor: neither takes the other's place in the chain."""
    logs = [AuditLog(tmp_path / "audit.jsonl") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: logs[n % 4].append(record(n)), range(80)))
    assert faults(tmp_path / "audit.jsonl") == []
    assert len((tmp_path / "audit.jsonl").read_bytes().splitlines()) == 80


@pytest.mark.parametrize("line", [1, 2])
def test_an_edited_line_shows(tmp_path: Path, line: int) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for generation in range(3):
        log.append(record(generation))
    lines = path.read_text().splitlines()
    lines[line - 1] = lines[line - 1].replace('"ok":true', '"ok":false')
    path.write_text("\n".join(lines) + "\n")
    (fault,) = faults(path)
    assert fault.startswith(f"{line + 1}: expected previous ")
