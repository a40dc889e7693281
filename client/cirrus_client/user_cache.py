"""The user's cache folder: what makes the next start faster. Its content may be deleted at any time."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)


def user_cache(name: str) -> Path | None:
    """Create and return a folder in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`, or return None.

    None: the process has no home folder, the folder can't be written, or it is not safe, because another user owns it
    or may write to it. A warning says so, and what would have been kept is made again at the next start.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cirrus"
        folder = root / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unsafe = next((path for path in (root, folder) if not _is_ours_alone(path)), None)
    except (OSError, RuntimeError) as error:  # RuntimeError: no HOME, and the user id has no entry in passwd
        log.warning("nothing is kept in the user's cache: %s; $XDG_CACHE_HOME names another folder", error)
        return None
    if unsafe is not None:
        log.warning("%s is not used: others may write to it; remove it, or set $XDG_CACHE_HOME", unsafe)
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        log.warning("nothing is kept in %s: it can't be written; $XDG_CACHE_HOME names another folder", folder)
        return None
    return folder


def _is_ours_alone(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
