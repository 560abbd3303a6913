"""What an admin does to the models of a workspace; the embed service says which they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.embed_client import EmbedClient
    from services.indexer.model import EmbedModel, Workspace, WorkspaceModel
    from services.indexer.storage.workspace_models import WorkspaceModels
    from services.indexer.storage.workspaces import WorkspaceStore


class ModelAdmin:
    """Adds, lists, activates and removes models by their names."""

    def __init__(
        self, workspaces: WorkspaceStore, models: WorkspaceModels, embed: EmbedClient
    ) -> None:
        self._workspaces = workspaces
        self._models = models
        self._embed = embed

    async def add(self, workspace: Workspace, name: str) -> WorkspaceModel:
        """Embeds a workspace with a model beside the active one, in the background.

        Raises:
            ModelNotLoadedError: the embed service does not serve it.
            StateConflictError: the workspace was never indexed.
        """
        model = await self._workspaces.register_model(await self._embed.model(name))
        added = await self._models.add(workspace, model)
        metrics.MODEL_CHANGES.labels("added").inc()
        return added

    async def page(self, workspace: Workspace, after: int, limit: int) -> Sequence[WorkspaceModel]:
        """Returns the models of a workspace, those after an id."""
        return await self._models.page(workspace, after, limit)

    async def activate(
        self, workspace: Workspace, name: str, fingerprint: str, *, force: bool
    ) -> WorkspaceModel:
        """Switches search over. Raises as `WorkspaceModels.activate`."""
        model_id = await self._models.find(workspace, name, fingerprint)
        activated = await self._models.activate(workspace, model_id, force=force)
        metrics.MODEL_CHANGES.labels("activated").inc()
        return activated

    async def remove(self, workspace: Workspace, name: str, fingerprint: str) -> None:
        """Drops a model. Raises as `WorkspaceModels.remove`."""
        model_id = await self._models.find(workspace, name, fingerprint)
        await self._models.remove(workspace, model_id)
        metrics.MODEL_CHANGES.labels("removed").inc()

    async def served(self, item: WorkspaceModel) -> EmbedModel | None:
        """Returns what embed serves under a model's name, or None.

        Raises:
            DependencyUnavailableError: embed does not answer, or is loading it.
        """
        return await self._embed.find(item.model.name)
