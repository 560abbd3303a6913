"""The conversion of a model: once, whole or not at all, and without a word to the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from services.embed.backends.converted import OFFLINE, folder_for, read_canary, read_facts
from services.embed.canary import CANARY_TEXTS
from tests.support.tiny_models import make_model
from tests.unit.embed.harness import bundled_folder
from tests.unit.io.test_io_write_faults import why_not_traced

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULE = "services.embed.backends.conversion"
_STARTS = f"""
import asyncio, sys
from pathlib import Path
from {_MODULE.removesuffix("conversion")}converted import ensure_converted
folders = {{"cache_dir": Path(sys.argv[2]), "model_id": "model"}}
asyncio.run(ensure_converted(Path(sys.argv[1]), timeout_seconds=100, **folders))
"""
_FLUSH = re.compile(r"fsync\(\d+<(.*)>\) += 0")
_QUIET = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        import os
        os.write(2, f"network: {event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(refuse)
from services.embed.backends.conversion import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_starts_at_once_convert_once_and_touch_no_network(tmp_path: Path) -> None:
    """Red when OpenVINO's telemetry is left on: it resolves a host and writes into the home.

    Also red when what a conversion left behind that was killed stays for ever.
    """
    target = tmp_path / "cache" / "model"
    (tmp_path / "cache" / ".model-k1ll3d__" / "model").mkdir(parents=True)
    home = tmp_path / "home"
    home.mkdir()
    parent = str(os.getpid())
    command = [sys.executable, "-c", _QUIET, parent, str(bundled_folder()), str(target)]
    environment = {**os.environ, **OFFLINE, "HOME": str(home)}

    children = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)
    ]
    errors = [child.communicate(timeout=100)[1].decode() for child in children]

    assert [child.returncode for child in children] == [0, 0], errors
    assert sorted(path.name for path in target.parent.iterdir()) == ["model", "model.lock"]
    assert not (home / "intel").exists()
    facts = read_facts(target)
    assert (facts.dimensions, facts.identity.max_tokens, facts.token_types) == (384, 256, True)
    assert read_canary(target).shape == (len(CANARY_TEXTS), 384)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced() or "traced")
def test_a_converted_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """Red without flushes: after a loss of power the folder is there, and its files are empty."""
    target, trace = tmp_path / "model", tmp_path / "trace"
    source = make_model(tmp_path / "source", bundled_folder())
    calls = "fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "--seccomp-bpf", "-e", f"trace={calls}", "-o", str(trace)]
    conversion = ["sh", "-c", f'exec {sys.executable} -m {_MODULE} $PPID "$0" "$1"']

    subprocess.run(
        [*command, *conversion, str(source), str(target)],
        env={**os.environ, **OFFLINE},
        check=True,
        capture_output=True,
        timeout=100,
    )

    lines = trace.read_text().splitlines()
    renamed = next(at for at, line in enumerate(lines) if f'"{target}"' in line)
    flushed = {Path(found[1]).name for found in map(_FLUSH.search, lines[:renamed]) if found}
    assert flushed >= {path.name for path in target.iterdir()} | {"model"}
    assert any(f"<{tmp_path}>" in line for line in lines[renamed:])


@pytest.mark.slow
def test_a_conversion_ends_with_the_process_that_wants_it(tmp_path: Path) -> None:
    """Red when it goes on: it takes a core and the lock for nothing, and the next start waits."""
    command = [sys.executable, "-c", _STARTS, str(bundled_folder()), str(tmp_path)]
    with subprocess.Popen(command) as parent:
        _wait_until(lambda: list(tmp_path.glob("*.lock")))
        (conversion,) = psutil.Process(parent.pid).children()
        parent.kill()

    _wait_until(lambda: _has_ended(conversion), seconds=2)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _wait_until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_the_serving_process_loads_neither_torch_nor_telemetry(tmp_path: Path) -> None:
    """They would cost seconds at each start and hundreds of megabytes."""
    program = (
        "import asyncio, sys\n"
        "from services.embed.app import EmbedApp\n"
        "from tests.unit.embed.harness import settings_of\n"
        "async def main():\n"
        "    app = EmbedApp(settings_of(model='minilm', backend='openvino'))\n"
        "    await app.start()\n"
        "    await app.close()\n"
        "asyncio.run(main())\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers'}\n"
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items() if module}\n"
        "print(sorted(loaded & (heavy | {'openvino_telemetry'})))\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )

    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_changed_model_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    config = model / "1_Pooling" / "config.json"
    config.write_text("{}")

    def folder() -> Path:
        return folder_for(model, cache_dir=tmp_path, model_id="m")

    first, again = folder(), folder()
    config.write_text('{"pooling_mode_cls_token": true}')
    other_config = folder()
    (model / "model.safetensors").write_bytes(b"other weights")
    other_weights = folder()

    assert first == again
    assert len({first, other_config, other_weights}) == 3
