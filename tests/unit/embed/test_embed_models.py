"""Models that come and go while the service serves: who may, what they tell, what they leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client import REGISTRY

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.embed.v1 import model_service_pb2 as model_pb
from lodestone.embed.v1 import model_service_pb2_grpc as model_grpc
from services.embed.app import EmbedApp
from services.embed.errors import LimitReachedError
from services.embed.memory import MemoryBound, estimate_bytes, held_bytes
from services.runtime.exits import ExitCode, StartError
from services.runtime.status import read_rpc_error, read_status
from tests.unit.embed.harness import (
    bundled_folder,
    eventually,
    service,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from services.runtime.status import RemoteError

CANARY = "canary-5fd1"


def _load(model_id: str, source: str = "hashing:64", **fields: Any) -> model_pb.LoadModelRequest:
    return model_pb.LoadModelRequest(model_id=model_id, source=source, **fields)


def _name(model_id: str) -> model_pb.UnloadModelRequest:
    return model_pb.UnloadModelRequest(name=f"models/{model_id}")


async def _failure(call: Awaitable[object]) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    error = read_rpc_error(failure.value)
    assert CANARY not in str(failure.value)
    return error


async def _vector_bytes(channel: grpc.aio.Channel, model_id: str) -> int:
    answer = await embed_grpc.EmbedServiceStub(channel).Embed(
        pb.EmbedRequest(
            model=f"models/{model_id}",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT),
            texts=["def f(): pass"],
        )
    )
    return len(answer.results[0].embedding.vector)


async def _until_none_is_loading(channel: grpc.aio.Channel) -> None:
    stub = model_grpc.ModelServiceStub(channel)
    async with asyncio.timeout(10):
        loading = True
        while loading:
            listed = await stub.ListModels(model_pb.ListModelsRequest())
            loading = any(m.state == model_pb.Model.STATE_LOADING for m in listed.models)


# Over gRPC.


@pytest.fixture
async def channel(address: str, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    async with service(address, model_admin=True, max_models=3, model_dirs=(allowed,)) as opened:
        yield opened


async def test_a_loaded_model_serves_beside_the_first_and_is_gone_once_unloaded(
    channel: grpc.aio.Channel,
) -> None:
    stub = model_grpc.ModelServiceStub(channel)

    loaded = await stub.LoadModel(_load("small", share=3, matryoshka_dimensions=[32, 16, 999]))
    listed = await stub.ListModels(model_pb.ListModelsRequest())
    sizes = [await _vector_bytes(channel, "small"), await _vector_bytes(channel, "hashing")]
    await stub.UnloadModel(_name("small"))

    assert loaded.model.state == model_pb.Model.STATE_READY
    assert (loaded.model.dimensions, loaded.model.share) == (64, 3)
    assert list(loaded.model.matryoshka_dimensions) == [16, 32]
    assert [(model.name, model.is_default) for model in listed.models] == [
        ("models/hashing", True),
        ("models/small", False),
    ]
    assert sizes == [64 * 4, 384 * 4]
    for gone in (
        _vector_bytes(channel, "small"),
        stub.GetModel(model_pb.GetModelRequest(name="models/small")),
        stub.UnloadModel(_name("small")),
    ):
        assert (await _failure(gone)).reason == "ERROR_REASON_MODEL_NOT_LOADED"


async def test_a_list_goes_on_after_a_model_that_is_gone_by_then(
    channel: grpc.aio.Channel,
) -> None:
    """Red when the token must name a model that is there: whoever lists has to begin anew."""
    stub = model_grpc.ModelServiceStub(channel)
    for model_id in ("a", "b"):
        await stub.LoadModel(_load(model_id))
    first = await stub.ListModels(model_pb.ListModelsRequest(page_size=1))
    await stub.UnloadModel(_name("a"))

    rest = await stub.ListModels(model_pb.ListModelsRequest(page_token=first.next_page_token))

    assert [model.name for model in first.models] == ["models/a"]
    assert [model.name for model in rest.models] == ["models/b", "models/hashing"]


async def test_the_same_load_again_is_answered_and_another_of_that_id_refused(
    channel: grpc.aio.Channel,
) -> None:
    stub = model_grpc.ModelServiceStub(channel)
    first = await stub.LoadModel(_load("a"))

    again = await stub.LoadModel(_load("a"))
    own = await stub.LoadModel(_load("hashing", "hashing"))
    other = await _failure(stub.LoadModel(_load("a", "hashing:128")))

    assert again == first
    assert own.model.is_default
    assert (other.code, other.reason) == ("ALREADY_EXISTS", "ERROR_REASON_ALREADY_EXISTS")
    assert other.metadata["resource"] == "models/a"


async def test_loads_at_once_of_one_model_are_one_load(channel: grpc.aio.Channel) -> None:
    stub = model_grpc.ModelServiceStub(channel)

    answers = await asyncio.gather(*(stub.LoadModel(_load("a")) for _ in range(10)))

    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


async def test_one_model_too_many_is_refused(channel: grpc.aio.Channel) -> None:
    stub = model_grpc.ModelServiceStub(channel)
    for model_id in ("a", "b"):
        await stub.LoadModel(_load(model_id))

    error = await _failure(stub.LoadModel(_load("c")))
    await stub.UnloadModel(_name("a"))
    await stub.LoadModel(_load("c"))

    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "ERROR_REASON_LIMIT_REACHED")
    assert error.metadata == {"resource": "models", "limit": "3", "needed": "4"}


async def test_a_caller_learns_nothing_of_folders_that_are_not_its_own(
    channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    """Red when the answer tells a folder that exists from one that does not."""
    model = tmp_path / CANARY
    model.mkdir()
    (model / "modules.json").write_text("[]")
    allowed = tmp_path / "allowed"
    (allowed / "link").symlink_to(model)
    (allowed / "empty").mkdir()
    stub = model_grpc.ModelServiceStub(channel)
    sources = [
        str(model),
        f"{model}-that-is-not-there",
        "/etc",
        "/etc/passwd",
        "~",
        "..",
        f"../{CANARY}",
        f"{allowed}/../{CANARY}",
        f"{allowed}/link",
        "link",
        "empty",
        "missing",
        str(bundled_folder()),
        "minilmm",
        "hashing:0",
        "hashing:x",
        "a\0b",
    ]

    errors = [await _failure(stub.LoadModel(_load("x", source))) for source in sources]

    assert {(error.code, error.reason) for error in errors} == {
        ("INVALID_ARGUMENT", "ERROR_REASON_INVALID_REQUEST")
    }
    assert len({error.message for error in errors}) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "onnx"},
        {"precision": "int4"},
        {"matryoshka_dimensions": [0]},
        {"matryoshka_dimensions": [8, 8]},
        {"share": 101},
        {"model_id": "A/B"},
    ],
)
async def test_a_wrong_field_is_refused(channel: grpc.aio.Channel, fields: dict[str, Any]) -> None:
    request = model_pb.LoadModelRequest(**{"model_id": "x", "source": "hashing", **fields})

    error = await _failure(model_grpc.ModelServiceStub(channel).LoadModel(request))

    assert error.reason == "ERROR_REASON_INVALID_REQUEST"


async def test_nobody_changes_models_unless_the_settings_say_so(address: str) -> None:
    async with service(address) as channel:
        stub = model_grpc.ModelServiceStub(channel)
        errors = [
            await _failure(stub.LoadModel(_load("a"))),
            await _failure(stub.LoadModel(_load("a", "/etc"))),
            await _failure(stub.UnloadModel(_name("hashing"))),
            await _failure(stub.UnloadModel(_name("missing"))),
        ]
        size = await _vector_bytes(channel, "hashing")

    assert {(error.code, error.reason) for error in errors} == {
        ("PERMISSION_DENIED", "ERROR_REASON_FORBIDDEN")
    }
    assert size == 384 * 4


async def test_models_named_in_the_settings_serve_beside_the_first(address: str) -> None:
    extra = ("code=hashing:128", "aaa=hashing:32")
    async with service(address, extra_models=extra, model_shares=("code=5",)) as channel:
        stub = model_grpc.ModelServiceStub(channel)

        async def states() -> dict[str, tuple[int, int, bool]]:
            listed = await stub.ListModels(model_pb.ListModelsRequest())
            return {m.name: (m.dimensions, m.share, m.is_default) for m in listed.models}

        await _until_none_is_loading(channel)
        assert await states() == {
            "models/aaa": (32, 1, False),
            "models/code": (128, 5, False),
            "models/hashing": (384, 1, True),
        }


def _models_by_state() -> dict[str, float | None]:
    name, states = "lodestone_embed_models", ("loading", "ready", "failed")
    return {state: REGISTRY.get_sample_value(name, {"state": state}) for state in states}


@pytest.mark.slow
async def test_a_model_that_does_not_load_says_why_and_may_be_tried_again(
    address: str, tmp_path: Path
) -> None:
    """Red when an error's own text is sent: it names the folder, and the key of its config.

    Also red when a path ends at a space: its last parts, behind one, are sent.
    """
    folder = tmp_path / f"models of {CANARY}" / "broken"
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text(f'{{"model_type": "{CANARY}"}}')
    async with service(
        address,
        model_admin=True,
        model_dirs=(folder.parent,),
        backend="auto",
        cache_dir=tmp_path / "cache",
        max_models=2,
    ) as channel:
        stub = model_grpc.ModelServiceStub(channel)

        error = await _failure(stub.LoadModel(_load("broken", "broken")))
        got = await stub.GetModel(model_pb.GetModelRequest(name="models/broken"))
        use = await _failure(_vector_bytes(channel, "broken"))
        states = _models_by_state()
        again = await _failure(stub.LoadModel(_load("broken", str(folder))))
        good = await stub.LoadModel(_load("good"))  # the failed one makes room
        later = _models_by_state()

    assert states == {"loading": 0, "ready": 1, "failed": 1}
    assert later == {"loading": 0, "ready": 2, "failed": 0}
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "ERROR_REASON_MODEL_LOAD_FAILED")
    assert "does not convert" in error.message
    assert "/" not in error.message.removeprefix("models/")
    assert got.model.state == model_pb.Model.STATE_FAILED
    told = read_status(got.model.error)
    assert (told.reason, told.message) == (error.reason, error.message)
    assert use.reason == "ERROR_REASON_MODEL_NOT_LOADED"
    assert again.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
    assert good.model.state == model_pb.Model.STATE_READY


@pytest.mark.slow
async def test_a_load_outlives_the_caller_who_gives_up_and_an_unload_ends_it(
    address: str, tmp_path: Path
) -> None:
    """Red when the load is the caller's own task: it ends with the deadline."""
    (tmp_path / "bundled").symlink_to(bundled_folder())
    async with service(
        address,
        model_admin=True,
        model_dirs=(bundled_folder().parent,),
        cache_dir=tmp_path / "cache",
        backend="auto",
    ) as channel:
        stub = model_grpc.ModelServiceStub(channel)
        request = _load("slow", "model", backend="openvino")

        late = await _failure(stub.LoadModel(request, timeout=0.5))
        got = await stub.GetModel(model_pb.GetModelRequest(name="models/slow"))
        joined = asyncio.ensure_future(_failure(stub.LoadModel(request, timeout=60)))
        await eventually(lambda: list((tmp_path / "cache").glob("*.lock")), 30)
        await stub.UnloadModel(_name("slow"), timeout=10)
        error = await joined

    assert late.code == "DEADLINE_EXCEEDED"
    assert got.model.state == model_pb.Model.STATE_LOADING
    assert not got.model.dimensions
    assert error.reason == "ERROR_REASON_MODEL_NOT_LOADED"
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".xml"]


# Memory.


def test_the_memory_held_is_measured_and_a_model_above_the_bound_refused() -> None:
    held = held_bytes()
    assert held > 10 << 20
    MemoryBound(0).check(1 << 50)
    MemoryBound(held * 10).check(held)

    with pytest.raises(LimitReachedError) as refusal:
        MemoryBound(held * 10).check(held * 11)

    assert refusal.value.metadata["resource"] == "memory_bytes"


def test_weights_in_several_formats_count_once(tmp_path: Path) -> None:
    few = estimate_bytes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(900))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(bytes(50))

    assert estimate_bytes(tmp_path) == few + 2 * 1050


async def test_a_model_too_large_for_the_bound_is_refused_before_it_is_read(
    address: str, tmp_path: Path
) -> None:
    """Red without the estimate: the model is read, and takes what there is not."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(1 << 36)  # a hole: no disk is taken
    bound = held_bytes() + (1 << 30)
    async with service(
        address, model_admin=True, model_dirs=(tmp_path,), backend="auto", max_memory_bytes=bound
    ) as channel:
        stub = model_grpc.ModelServiceStub(channel)
        error = await _failure(stub.LoadModel(_load("m", "large"), timeout=5))
        small = await stub.LoadModel(_load("small"))

    assert error.reason == "ERROR_REASON_LIMIT_REACHED"
    assert error.metadata["resource"] == "memory_bytes"
    assert small.model.state == model_pb.Model.STATE_READY


async def test_a_first_model_that_turns_out_too_large_stops_the_start() -> None:
    """Red without the second look: nothing can be estimated of a model without a folder."""
    app = EmbedApp(settings_of(max_memory_bytes=1 << 20))

    with pytest.raises(StartError) as failure:
        await app.start()

    await app.close()
    assert failure.value.code is ExitCode.MODEL
    assert "MiB" in failure.value.message
