"""What the io service counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services.io.watch.model import RescanCause
from services.runtime.process_metrics import told_from_zero

_SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)

SCANS = Counter("lodestone_io_scans", "Scans of a tree, by outcome.", ["outcome"])
SCAN_SECONDS = Histogram("lodestone_io_scan_seconds", "Seconds of a scan.", buckets=_SECONDS)
SCANNED_FILES = Counter("lodestone_io_scanned_files", "Files that scans found.")
SKIPPED_FILES = Counter("lodestone_io_skipped_files", "Files left out by scans.", ["reason"])
SCAN_WARNINGS = Counter("lodestone_io_scan_warnings", "Places that scans could not look at.")

CHECKED_FILES = Counter("lodestone_io_checked_files", "Files of check calls.", ["verdict"])
CHECK_SECONDS = Histogram("lodestone_io_check_seconds", "Seconds of a call.", buckets=_SECONDS)

PARSED_FILES = Counter("lodestone_io_parsed_files", "Files of parse calls.", ["outcome"])
PARSED_NODES = Counter("lodestone_io_parsed_nodes", "Nodes that parsing made.")
PARSE_SECONDS = Histogram("lodestone_io_parse_seconds", "Seconds of a call.", buckets=_SECONDS)
PARSE_WORKERS = Gauge("lodestone_io_parse_workers", "Worker processes that live.")

READ_ITEMS = Counter("lodestone_io_read_items", "Items of read calls.", ["outcome"])
READ_FILES = Counter(
    "lodestone_io_read_files", "Files of read calls: read, cached or failed.", ["outcome"]
)
CACHE_BYTES = Gauge("lodestone_io_cache_bytes", "Bytes of files that are held for later reads.")
READ_SECONDS = Histogram("lodestone_io_read_seconds", "Seconds of a call.", buckets=_SECONDS)

WATCHED_TREES = Gauge("lodestone_io_watched_trees", "Trees that are watched.")
WATCHED_FOLDERS = Gauge("lodestone_io_watched_folders", "Folders that the kernel watches.")
WATCH_STREAMS = Gauge("lodestone_io_watch_streams", "Callers that watch.")
WATCH_EVENTS = Counter("lodestone_io_watch_events", "Events of watched trees.", ["type"])
WATCH_RESCANS = Counter(
    "lodestone_io_watch_rescans", "Times that callers were told to scan.", ["cause"]
)

WRITTEN_FILES = Counter("lodestone_io_written_files", "Files of writes.", ["kind", "outcome"])
WRITE_SECONDS = Histogram("lodestone_io_write_seconds", "Seconds of a call.", buckets=_SECONDS)
WRITES_REPEATED = Counter("lodestone_io_writes_repeated", "Calls answered from the journal.")
WRITE_LOCK_WAITS = Counter("lodestone_io_write_lock_waits", "Waits for who held a file.")
EDIT_REQUESTS_REMEMBERED = Gauge(
    "lodestone_io_edit_requests_remembered", "Requests that the journal holds."
)
EDIT_REQUESTS_FORGOTTEN = Counter(
    "lodestone_io_edit_requests_forgotten", "Requests forgotten before their time for want of room."
)
TEMPORARY_FILES_SWEPT = Counter(
    "lodestone_io_temporary_files_swept", "Temporary files of dead processes that were removed."
)
ROOTS = Gauge("lodestone_io_roots", "Roots that this process knows, by where from.", ["source"])
ROOT_CHANGES = Counter("lodestone_io_root_changes", "Calls that change roots.", ["outcome"])

told_from_zero(SCANS, "succeeded", "failed", "cancelled")
told_from_zero(PARSED_FILES, "parsed", "unchanged", "skipped", "error")
told_from_zero(READ_ITEMS, "read", "failed")
told_from_zero(WATCH_RESCANS, *RescanCause)
