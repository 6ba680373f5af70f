"""Files from the web: resumed where a connection broke, checked against their MD5 sum, unpacked without surprises."""

import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from equicat.errors import InputError
from equicat.files import writing_to
from equicat.terminal.progress import Bar, progress_bar

BLOCK = 1 << 20
"""Bytes to read at a time."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
RETRIES = 5
"""Broken connections in a row, without a byte between them, after which we give up."""
RETRY_PAUSE = 2.0
"""Seconds before the first retry; twice as long before each further one."""

_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def download(url: str, path: Path, md5: str | None = None, progress: bool = True) -> None:
    """Fetch a file; what an earlier call left in ``<path>.part`` is not fetched again.

    Args:
        url: of a server that understands byte ranges; from any other the file is fetched from the start.
        path: appears when the file is complete and its checksum right.
        md5: the published checksum; None accepts what comes.
        progress: show a progress bar.

    Raises:
        InputError: if the server refuses, the connection breaks again and again, the disk is full, or the checksum is
            wrong (then what was fetched is removed).
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    with writing_to(part), progress_bar(desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        while True:
            before = part.stat().st_size
            reason = _continue(url, part, bar)
            if reason is None:
                break
            failures = 1 if part.stat().st_size > before else failures + 1
            if failures > RETRIES:
                raise InputError(
                    f"{url}: the connection breaks again and again ({reason}); run the command again later, it goes on "
                    f"at {part.stat().st_size:,} bytes, or name another mirror"
                )
            time.sleep(RETRY_PAUSE * 2 ** (failures - 1))
        if md5 is not None:
            _check(url, part, md5, progress)
        part.rename(path)


def md5_of(path: Path, progress: bool = False) -> str:
    """MD5 sum of a file, as published with OC20."""
    checksum = hashlib.md5(usedforsecurity=False)
    total = path.stat().st_size
    with (
        path.open("rb") as file,
        progress_bar(desc="MD5", total=total, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while block := file.read(BLOCK):
            checksum.update(block)
            bar.update(len(block))
    return checksum.hexdigest()


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool], progress: bool = True) -> None:
    """Unpack the members of a tar archive whose names are ``wanted``; ``folder`` appears when all are there.

    Raises:
        InputError: if the archive is damaged, a name leads out of the folder, nothing is wanted, or the disk is full.
    """
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    n_files = 0
    with writing_to(temporary), progress_bar(desc=f"unpack {archive.name}", unit=" files", disable=not progress) as bar:
        temporary.mkdir(parents=True)
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.isfile() and wanted(member.name.removeprefix("./")):
                        _extract(tar, member, temporary)
                        n_files += 1
                        bar.update()
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise InputError(f"{archive}: damaged archive ({error}); remove it and run the command again") from error
        if n_files == 0:
            raise InputError(f"{archive}: nothing in it that is wanted; is it the right file?")
        temporary.rename(folder)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a file of an archive below a folder, as ``filter="data"`` would, which Python 3.11.0 to 3.11.3 do not have.

    Raises:
        ValueError: if its name leads out of the folder.
    """
    path = (folder / member.name.lstrip("/")).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{member.name!r} would be outside of {folder}")
    content = tar.extractfile(member)
    assert content is not None, "regular files have content"
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file, BLOCK)


def require_space(folder: Path, n_bytes: float) -> None:
    """Make sure that so much can be written below ``folder``, which need not exist yet.

    Raises:
        InputError: saying what is needed and what is free.
    """
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise InputError(
            f"{folder}: needs {n_bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; free some space or choose "
            "another place"
        )


def _continue(url: str, part: Path, bar: Bar) -> str | None:
    """Fetch what is missing of ``part``; None if it is complete then, else what stopped it."""
    offset = part.stat().st_size
    headers = {"User-Agent": "equicat"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            if response.status != 206:
                offset = 0
            total = offset + int(response.headers.get("Content-Length") or -offset - 1)
            bar.total = total if total >= 0 else None
            bar.n = offset
            bar.refresh()
            with part.open("r+b") as file:
                file.truncate(offset)
                file.seek(offset)
                while block := response.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
        size = part.stat().st_size
        return None if total in (size, -1) else f"it closed at {size:,} of {total:,} bytes"
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{offset}":
            return None  # it was complete already
        if error.code == 416:
            part.write_bytes(b"")
            return "what was fetched earlier is longer than the file"
        if error.code >= 500 or error.code == 429:
            return f"the server answers {error.code} {error.reason}"
        raise InputError(
            f"{url}: the server answers {error.code} {error.reason}; check the mirror, or look whether OC20 has moved"
        ) from error
    except _BROKEN as error:
        return str(getattr(error, "reason", None) or error or type(error).__name__)


def _check(url: str, part: Path, md5: str, progress: bool) -> None:
    found = md5_of(part, progress)
    if found != md5:
        part.unlink()
        raise InputError(
            f"{url}: its MD5 sum is {found}, published is {md5}; the file was removed. Run the command again, or name "
            "another mirror"
        )
