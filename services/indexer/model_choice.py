"""Which model a run embeds with, and whether the embed service still serves that very one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.errors import ModelNotLoadedError
from services.indexer.patience import Patience
from services.indexer.run_spec import MODEL_REPLACED
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from services.indexer.embed_client import EmbedClient
    from services.indexer.ledger import RunLedger
    from services.indexer.model import EmbedModel, ModelId, RegisteredModel, Workspace
    from services.indexer.run import Run
    from services.indexer.settings import IndexerSettings
    from services.indexer.storage.workspaces import WorkspaceStore


@dataclass(frozen=True, slots=True)
class RunModels:
    """What a run works with."""

    active: RegisteredModel
    """The model that files are cut for and that search uses."""
    target: RegisteredModel
    """The model that the run embeds with: the active one, or one beside it."""
    remote: EmbedModel
    """The target as the embed service serves it."""


class ModelChoice:
    """Finds a run's models; puts another in the place of one that is not served any more."""

    def __init__(
        self,
        workspaces: WorkspaceStore,
        ledger: RunLedger,
        embed: EmbedClient,
        settings: IndexerSettings,
    ) -> None:
        self._workspaces = workspaces
        self._ledger = ledger
        self._embed = embed
        self._settings = settings

    async def choose(self, run: Run, workspace: Workspace) -> RunModels:
        """Returns the models of a run.

        A workspace keeps its model while that is served, by whatever name. One that is gone, or
        whose weights are others now, is replaced by the one that the settings name, and the run
        warns of it; but not where somebody chose the model.

        Raises:
            ModelNotLoadedError: the model is not served, or with other weights.
            DependencyUnavailableError: embed does not answer.
        """
        if run.model_id is not None and run.model_id != workspace.active_model_id:
            assert workspace.active_model_id is not None, "a model is added to an indexed workspace"
            target, remote = await self._served(run.model_id)
            if remote is None or remote.fingerprint != target.fingerprint:
                raise ModelNotLoadedError(_why(target, remote), metadata={"model": target.name})
            active = await self._workspaces.model(workspace.active_model_id)
            return RunModels(active, target, remote)
        return await self._of_active(run, workspace)

    async def _of_active(self, run: Run, workspace: Workspace) -> RunModels:
        warning = ""
        if workspace.active_model_id is not None:
            active, remote = await self._served(workspace.active_model_id)
            if remote is not None and remote.fingerprint == active.fingerprint:
                if self._settings.model not in {"", active.name}:
                    get_logger().warning(
                        "model_setting_unused", model=self._settings.model, used=active.name
                    )
                return RunModels(active, active, remote)
            why = _why(active, remote)
            if workspace.model_chosen:
                raise ModelNotLoadedError(why, metadata={"model": active.name})
            warning = f"{MODEL_REPLACED}{why}"
        patience = Patience(self._settings.dependency_patience_seconds)
        remote = await patience.call(lambda: self._embed.model(self._settings.model))
        model = await self._workspaces.register_model(remote)
        await self._workspaces.activate(run, model, self._ledger, warning)
        return RunModels(model, model, remote)

    async def _served(self, model_id: ModelId) -> tuple[RegisteredModel, EmbedModel | None]:
        """Returns a model, and what embed serves with its weights, else by its name, if anything.

        One that is served by another name than before has that name from now on.
        """
        model = await self._workspaces.model(model_id)
        patience = Patience(self._settings.dependency_patience_seconds)
        remote = await patience.call(lambda: self._embed.find(model.name))
        if remote is not None and remote.fingerprint == model.fingerprint:
            return model, remote
        same = await patience.call(lambda: self._embed.find_weights(model.fingerprint))
        if same is None:
            return model, remote
        return await self._workspaces.register_model(same), same


def _why(model: RegisteredModel, remote: EmbedModel | None) -> str:
    name = model.name.removeprefix("models/")
    if remote is None:
        return f"the embed service does not serve {name}, which the vectors are of."
    return (
        f"the embed service serves {name} with other weights than the vectors are of "
        f"(fingerprint {remote.fingerprint[:12]}, not {model.fingerprint[:12]})."
    )
