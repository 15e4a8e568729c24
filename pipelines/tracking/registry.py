"""MLflow's model registry: versions known by what they hold, and the aliases that point at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipelines.tracking.writing.store import Store, all_pages
from pipelines.tracking.writing.tags import CONTENT, PRESET

FORM = "kdci.form"
"""Tag that tells what a version holds of an artifact: `dictionary`, or the student's answer."""


class Registry:
    """The registered models of one preset; a version is MLflow's ``ModelVersion``.

    Args:
        store: The opened store; its registry is the one used.
        preset: Whose models.
    """

    def __init__(self, store: Store, preset: str) -> None:
        self._client = store.client
        self._preset = preset
        self._versions: defaultdict[str, list[Any]] = defaultdict(list)
        wanted = f"tags.`{PRESET}` = '{preset}'"
        for version in all_pages(self._client.search_model_versions, wanted):
            self._versions[version.name].append(version)

    def find(self, name: str, content: str, form: str) -> Any | None:
        """Return the version of a model that holds this content in this form; None: none does."""
        for version in self._versions[name]:
            if (version.tags.get(CONTENT), version.tags.get(FORM)) == (content, form):
                return version
        return None

    def add(
        self, name: str, *, folder: str, run_id: str, tags: Mapping[str, str], about: str
    ) -> Any:
        """Add a version that is a folder of a run's artifacts.

        Args:
            name: Of the model, which is made if it is new.
            folder: Of the run's artifacts.
            run_id: The run that made it.
            tags: Its tags; the preset is added.
            about: One line for people.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, tags={PRESET: self._preset})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name,
            f"runs:/{run_id}/{folder}",
            run_id=run_id,
            tags={**tags, PRESET: self._preset},
            description=about,
            await_creation_for=0,  # it is ready at once where artifacts are not scanned
        )
        self._versions[name].append(version)
        return version

    def set_tags(self, version: Any, tags: Mapping[str, str]) -> None:
        """Set the tags that differ from the version's."""
        for key, value in tags.items():
            if version.tags.get(key) != value:
                self._client.set_model_version_tag(version.name, version.version, key, value)
                version.tags[key] = value

    def point(self, alias: str, version: Any) -> None:
        """Let ``alias`` point at ``version`` and at no other one of its model."""
        if alias in version.aliases:
            return
        self._client.set_registered_model_alias(version.name, alias, version.version)
        for other in self._versions[version.name]:
            other.aliases = [name for name in other.aliases if name != alias]
        version.aliases.append(alias)
