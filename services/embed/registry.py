"""The models that this server has loaded, by id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.embed.errors import ModelNotLoadedError

if TYPE_CHECKING:
    from services.embed.model import ModelId, ModelInfo
    from services.embed.serving import ServedModel


class ModelRegistry:
    """Finds a served model by the last part of its resource name."""

    def __init__(self) -> None:
        self._models: dict[ModelId, ServedModel] = {}

    def get(self, model_id: ModelId) -> ServedModel:
        """Returns a model.

        Raises:
            ModelNotLoadedError: no such model is loaded.
        """
        model = self._models.get(model_id)
        if model is None:
            raise ModelNotLoadedError(f"models/{model_id}")
        return model

    def add(self, model: ServedModel) -> None:
        """Serves a model from now on."""
        assert model.info.model_id not in self._models
        self._models[model.info.model_id] = model

    def infos(self) -> list[ModelInfo]:
        """Returns what is loaded, by id."""
        return [self._models[model_id].info for model_id in sorted(self._models)]

    async def close(self) -> None:
        """Unloads all models."""
        while self._models:
            _, model = self._models.popitem()
            await model.close()
