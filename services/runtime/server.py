"""Starts a service, keeps its health true, and stops it in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime import addresses, failpoints, log, metrics_port, telemetry
from services.runtime.exits import ExitCode, StartError
from services.runtime.health import Health
from services.runtime.heap import keep_large_blocks_apart
from services.runtime.interceptors import CallInterceptor, Gate
from services.runtime.process_metrics import process_observed
from services.runtime.tls import ServerTls
from services.runtime.tokens import AcceptedTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from services.runtime.settings import ServiceSettings

_SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Our channels ping every 30 s; by default a server takes that for abuse and hangs up on a
    # stream that has been silent for a while.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Clients look up addresses again when a connection ends: so they find replicas that came later.
    # Calls and streams in flight stay.
    ("grpc.max_connection_age_ms", 300_000),
    # A caller whose machine or process is frozen is let go.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_CANCEL_SECONDS = 0.4
"""Least time for cancelled calls to end."""

_CLOSE_SECONDS = 1.5
"""Least time for releasing what a service built, also when draining took all of the time."""

_LEAVE_SECONDS = 0.05
"""How long no call has come once callers have left a server that is to stop."""

_LEAVE_TRIES = 20
"""How often that is waited for."""

_HEALTH_CALLS = 100
"""Most calls at once on the address of health checks, watches among them."""

_LOOK_SECONDS = 0.25
"""How often it is looked whether the servers still take calls."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class App(Protocol):
    """What a service is, for the one that runs it."""

    @property
    def name(self) -> str:
        """Short name, e.g. `io`."""

    @property
    def service_names(self) -> Sequence[str]:
        """Full names of its protobuf services."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; they are called once `start` has returned."""

    async def start(self) -> None:
        """Builds everything. Raises StartError when it cannot serve."""

    async def drain(self) -> None:
        """Stops taking work, ends watches, gives back what is not finished.

        Called only when `start` has returned.
        """

    async def close(self) -> None:
        """Releases what `start` built, in reverse order; also after a failed start."""


@runtime_checkable
class ReportsHealth(Protocol):
    """An app that may be unable to serve for a while, and says so."""

    def report_health(self, tell: Callable[[bool], None]) -> None:
        """Has `tell` called on the event loop whenever that changes, once `start` returned."""


def main_guard(main: Callable[[], int], name: str) -> int:
    """Runs a process's main; an error that a person can mend is one line on standard error."""
    try:
        return main()
    except StartError as error:
        sys.stderr.write(f"lodestone-{name}: {error.message}\n")
        return int(error.code)


def run_service(settings: ServiceSettings, app: App) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    Raises:
        StartError: the service cannot start.
    """
    failpoints.arm(os.environ)
    keep_large_blocks_apart()
    log.configure(app.name, settings.log_level, settings.log_format)
    stop_traces = telemetry.configure_traces(
        app.name, settings.otlp_endpoint, settings.span_files(app.name)
    )
    try:
        return asyncio.run(_run_until_signal(settings, app, stop_traces))
    finally:
        stop_traces()


async def _run_until_signal(
    settings: ServiceSettings, app: App, stop_traces: Callable[[], None]
) -> int:
    run = ServiceRun(settings, app)

    def on_signal() -> None:
        if run.stopping:
            sys.stderr.write(f"lodestone-{app.name}: stopped at once by a second signal\n")
            os._exit(ExitCode.INTERRUPTED)
        run.stop()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:  # before anything else: a stop during the start must not be lost
        loop.add_signal_handler(number, on_signal)
    async with process_observed(app.name):
        code = await run.serve()
    if run.is_stuck:
        # Python waits for every thread before it ends, and one may wait for a disk for ever.
        stop_traces()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class ServiceRun:
    """One life of a service inside a running event loop."""

    def __init__(self, settings: ServiceSettings, app: App) -> None:
        self._settings = settings
        self._app = app
        self._gate = Gate(settings.max_concurrent_calls)
        self._health = Health(app.service_names)
        self._stop = asyncio.Event()
        self._variable = f"LODESTONE_{app.name.upper()}_LISTEN"
        self._failed = False
        self.is_stuck = False
        """Whether something that the service built could not be released in time."""

    @property
    def stopping(self) -> bool:
        """Whether the stop was asked for."""
        return self._stop.is_set()

    @property
    def serving(self) -> bool:
        """Whether calls are let in."""
        return self._gate.open and not self._gate.draining

    def stop(self) -> None:
        """Asks for an orderly stop, at any time; more than once is no more than once."""
        self._stop.set()

    async def serve(self) -> int:
        """Serves until `stop`; returns the exit code.

        Raises:
            StartError: the service cannot start; what was built is released.
        """
        self._settings.refuse_unguarded()
        async with AsyncExitStack() as opened:
            opened.callback(self._serve_metrics())
            server, port = self._make_server()
            servers = [server, *await self._serve_health(opened)]
            await server.start()
            started = False
            try:
                started = await self._start()
                if started:
                    self._gate.open = True
                    self._health.tell(serving=True)
                    if isinstance(self._app, ReportsHealth):
                        self._app.report_health(lambda well: self._health.tell(serving=well))
                    listen = addresses.shown(self._settings.listen, port)
                    log.get_logger().info("service_ready", listen=listen)
                    await self._until_stop(servers)
            finally:
                await self._shut_down(server, drain=started)
        log.get_logger().info("service_stopped", clean=not self._failed)
        return int(ExitCode.FAILED if self._failed else ExitCode.OK)

    async def _until_stop(self, servers: Sequence[grpc.aio.Server]) -> None:
        """Waits until the stop is asked for, or a server takes no calls any more.

        The loop of grpcio 1.85 in which calls arrive ends at a call whose method is not UTF-8, by
        an exception that nothing catches, and its process would live on and answer nobody. Whoever
        reaches the port can send such a call before any token is looked at. A server cannot be
        made anew within the process, where that crashes in grpcio; so the process ends, and
        whatever keeps services alive starts another.
        """
        while not self.stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._stop.wait()
            # No public method tells it.
            if not all(server._server.is_running() for server in servers):  # type: ignore[attr-defined] # noqa: SLF001
                log.get_logger().error("server_loop_lost")
                self._failed = True
                return

    def _serve_metrics(self) -> Callable[[], None]:
        address = self._settings.metrics_listen
        if not address:
            return lambda: None
        variable = f"LODESTONE_{self._app.name.upper()}_METRICS_LISTEN"
        return metrics_port.serve_metrics(address, variable, self._settings.tls)

    async def _serve_health(self, opened: AsyncExitStack) -> list[grpc.aio.Server]:
        """Answers health checks on an address of their own, which tells nothing else.

        Returns:
            Its server; none without such an address.
        """
        address = self._settings.health_listen
        if not address:
            return []
        variable = f"LODESTONE_{self._app.name.upper()}_HEALTH_LISTEN"
        addresses.refuse_unusable(address, variable)
        server = grpc.aio.server(options=_SERVER_OPTIONS, maximum_concurrent_rpcs=_HEALTH_CALLS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = self._bind(server, address, variable, None)
        await server.start()
        opened.push_async_callback(server.stop, None)
        log.get_logger().info("health_ready", listen=addresses.shown(address, port))
        return [server]

    def _make_server(self) -> tuple[grpc.aio.Server, int]:
        listen = self._settings.listen
        addresses.refuse_unusable(listen, self._variable)
        limit = self._settings.max_message_bytes
        accepted = self._settings.accepted_tokens_file
        tokens = AcceptedTokens(accepted) if accepted is not None else None
        tls = self._settings.tls
        # Whoever may use a Unix socket is the file system's business.
        speaks_tls = tls.serves and not listen.startswith("unix:")
        credentials = ServerTls(tls).credentials() if speaks_tls else None
        server = grpc.aio.server(
            interceptors=[CallInterceptor(f"{self._app.name}.lodestone", self._gate, tokens)],
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                *_SERVER_OPTIONS,
            ],
        )
        self._app.register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*self._app.service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server, self._bind(server, listen, self._variable, credentials)

    def _bind(
        self,
        server: grpc.aio.Server,
        address: str,
        variable: str,
        credentials: grpc.ServerCredentials | None,
    ) -> int:
        """Listens on an address; returns the port."""
        try:
            if credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, credentials)
        except RuntimeError:
            reason = "taken meanwhile, or not this machine's"
            raise addresses.cannot_listen(address, variable, reason) from None

    async def _start(self) -> bool:
        """Starts the app; returns whether it did before the stop was asked for."""
        starting = asyncio.create_task(self._app.start(), name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                return True
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,), timeout=self._settings.drain_seconds)
        if starting.done() and not starting.cancelled() and (error := starting.exception()):
            log.get_logger().warning("start_ended_with_error", exc_info=error)
        return False

    async def _shut_down(self, server: grpc.aio.Server, *, drain: bool) -> None:
        """Stops in order within `drain_seconds`: refuse, drain, end calls, release."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._settings.drain_seconds
        self._gate.draining = True
        self._health.stop()
        if drain:
            # Watches end here; they would hold the server's stop for all of its time.
            await self._step("drain", self._app.drain(), deadline)
        # Until then the gate tells new calls UNAVAILABLE. A server that is told to stop drops those
        # in its queue: they end CANCELLED, which few clients retry.
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._gate.wait_until_empty()
                await self._until_left()
        await server.stop(max(0.0, deadline - clock()))
        # `stop` cancels what is left without waiting for it; it may still use what is closed next.
        left = max(deadline, clock() + _CANCEL_SECONDS)
        await self._step("calls", self._gate.wait_until_empty(), left)
        await self._step("close", self._app.close(), max(deadline, clock() + _CLOSE_SECONDS))

    async def _until_left(self) -> None:
        """Waits until callers that heed health have gone elsewhere; a second for those who do not.

        Returns once no call was refused for a while.
        """
        for _ in range(_LEAVE_TRIES):
            refused = self._gate.refused
            await asyncio.sleep(_LEAVE_SECONDS)
            if self._gate.refused == refused:
                return

    async def _step(self, name: str, work: Coroutine[Any, Any, None], deadline: float) -> None:
        """Does one step of the stop; the next ones follow whatever comes of it."""
        try:
            async with asyncio.timeout_at(deadline):
                await work
        except TimeoutError:
            log.get_logger().warning("stop_step_timed_out", step=name)
            self.is_stuck = name == "close"
            self._failed = self._failed or self.is_stuck
        except Exception as error:  # noqa: BLE001 - the steps after this one must be done as well
            log.get_logger().error("stop_step_failed", step=name, exc_info=error)
            self._failed = True
