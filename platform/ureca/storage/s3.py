"""S3 calls that pyarrow lacks: paged listing, abortable uploads, readable errors.

boto3 uses the same sources of credentials, region and endpoint as pyarrow. It is imported on use.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

_UPLOAD_BYTES = 16 * 2**20
"""Size of one part. S3 allows 10,000 parts: a file of 160 GB."""


def finding(path: str | os.PathLike[str], error: Exception) -> str:
    """Describe S3's error for `path` and the remedy in one line. Accepts pyarrow's errors and boto3's."""
    text = " ".join(str(error).split())
    summary = _summarize(text)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if re.search(r"NETWORK_CONNECTION|REQUEST_TIMEOUT|Could not connect|[Cc]onnect(ion)? ?timeout|resolve host", text):
        return (
            f"{path}: no answer from S3 at {endpoint or 'Amazon'} ({summary}). Check the network, AWS_ENDPOINT_URL and "
            "AWS_REGION, then run the same command again; it resumes."
        )
    if re.search(r"status 301|PermanentRedirect|AuthorizationHeaderMalformed|bucket is located in", text):
        region = re.search(r"bucket is located in '([^']+)'", text)
        remedy = f"Set AWS_REGION={region[1]}." if region else "Set AWS_REGION to the bucket's own."
        return f"{path}: the bucket is in another region than the configured one. {remedy}"
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|Bucket .* not found", text):
        return f"{path}: there is no such bucket. Check its name, AWS_REGION and AWS_ENDPOINT_URL."
    if not _has_credentials():
        return (
            f"{path}: S3 denies access ({summary}), and no AWS credentials were found. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    if re.search(r"ACCESS_DENIED|AccessDenied|ACCESS_KEY|AccessKey|SIGNATURE|Signature|TOKEN|Token|403", text):
        return (
            f"{path}: S3 denies access with the AWS credentials that were found ({summary}). Check that they belong to "
            "this bucket and allow list, read and write."
        )
    return f"{path}: S3 failed ({summary}). Run the same command again later; it resumes."


def _summarize(text: str) -> str:
    """Extract the core of a long error: curl's message, or S3's error code."""
    for pattern in (r"curlCode: \d+, ([^;]*)", r"AWS Error (.*?) during", r"An error occurred \((\w+)\)"):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return text if len(text) <= 200 else f"{text[:199]}…"


def _has_credentials() -> bool:
    import boto3

    return boto3.Session().get_credentials() is not None


def list_objects(inner: str) -> Iterator[tuple[str, str]]:
    """Yield (relative key, "bucket/key") of every object below `inner`, "bucket" or "bucket/folder", sorted by key."""
    import boto3

    bucket, _, key = inner.partition("/")
    prefix = f"{key}/" if key else ""
    for page in boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            below = entry["Key"][len(prefix) :]
            if below and not below.endswith("/"):
                yield below, f"{bucket}/{entry['Key']}"


class Upload:
    """A multipart upload to S3: the file appears with its last part or not at all.

    pyarrow's own stream completes the file when an exception closes it, so a partial file would replace the old one.
    """

    closed = False

    def __init__(self, inner: str) -> None:
        import boto3

        bucket, key = inner.split("/", 1)
        self._client = boto3.client("s3")
        self._target = {"Bucket": bucket, "Key": key}
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._upload: dict[str, Any] | None = None

    def write(self, data: bytes) -> int:
        self._buffer += memoryview(data).cast("B")
        while len(self._buffer) >= _UPLOAD_BYTES:
            self._send(bytes(self._buffer[:_UPLOAD_BYTES]))
            del self._buffer[:_UPLOAD_BYTES]
        return len(data)

    def flush(self) -> None:
        """Do nothing: a part is sent when it is full."""

    def _send(self, data: bytes) -> None:
        if self._upload is None:
            upload_id = self._client.create_multipart_upload(**self._target)["UploadId"]
            self._upload = {**self._target, "UploadId": upload_id}
        number = len(self._parts) + 1
        answer = self._client.upload_part(**self._upload, PartNumber=number, Body=data)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.closed = True
        if kind is not None:
            if self._upload is not None:
                self._client.abort_multipart_upload(**self._upload)
        elif self._upload is None:
            self._client.put_object(**self._target, Body=bytes(self._buffer))
        else:
            if self._buffer:
                self._send(bytes(self._buffer))
            self._client.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": self._parts})
