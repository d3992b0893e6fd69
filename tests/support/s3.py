"""An S3 server as a process of its own, on 127.0.0.1: moto, which enforces conditional puts."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from support.server import free_port, wait_until

SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=of-the-tests/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=00"
}
"""Headers of a request that is not anonymous; the signature is not checked there."""

SERVER = str(Path(sys.executable).with_name("moto_server"))


@contextmanager
def running_s3(log: Path) -> Iterator[str]:
    """Run the server on a free port; gives its URL, and ends it by pid on leaving."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [SERVER, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url, process), "the S3 server answers")
        yield url
    finally:
        process.terminate()
        process.wait()


def environment_for(url: str) -> dict[str, str]:
    """What a client of that server needs; the keys are not checked there."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "of-the-tests",
    }


def make_bucket(url: str, name: str) -> None:
    httpx.put(f"{url}/{name}").raise_for_status()


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "the S3 server ended early"
    try:
        return httpx.get(f"{url}/moto-api/").is_success
    except httpx.TransportError:
        return False
