"""MLflow's model registry: versions known by what they hold, and the aliases that point at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.tracking.writing.record import CONTENT
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.tags import PRESET


@dataclass
class Version:
    """A version of a registered model.

    Attributes:
        name: Of the model.
        number: Of the version.
        tags: Its tags.
        aliases: The aliases that point at it.
        run_id: The run that made it.
    """

    name: str
    number: str
    tags: dict[str, str]
    aliases: set[str] = field(default_factory=set)
    run_id: str = ""


class Registry:
    """The registered models of one preset.

    Args:
        store: The opened store; its registry is the one used.
        preset: Whose models.
    """

    def __init__(self, store: Store, preset: str) -> None:
        self._store = store
        self._preset = preset
        self._versions: dict[str, list[Version]] = {}
        self._read()

    def _read(self) -> None:
        wanted = f"tags.`{PRESET}` = '{self._preset}'"
        token: str | None = None
        with self._store.errors():
            while True:
                page = self._store.client.search_model_versions(
                    wanted, max_results=1000, page_token=token
                )
                for one in page:
                    self._add(_version(one))
                token = page.token
                if not token:
                    return

    def _add(self, version: Version) -> None:
        self._versions.setdefault(version.name, []).append(version)

    def find(self, name: str, content: str, kind: str) -> Version | None:
        """Return the version that holds this content in this form; None: there is none.

        Args:
            name: Of the model.
            content: Content hash of the artifact.
            kind: The form, see ``FORM``.
        """
        for version in self._versions.get(name, []):
            if (version.tags.get(CONTENT), version.tags.get(FORM)) == (content, kind):
                return version
        return None

    def add(
        self, name: str, *, folder: str, run_id: str, tags: Mapping[str, str], about: str
    ) -> Version:
        """Add a version that is a folder of a run's artifacts.

        Args:
            name: Of the model, which is made if it is new.
            folder: Of the run's artifacts.
            run_id: The run that made it.
            tags: Its tags; the preset is added.
            about: One line for people.
        """
        from mlflow.exceptions import MlflowException

        tags = {**tags, PRESET: self._preset}
        client = self._store.client
        with self._store.errors():
            try:
                client.create_registered_model(name, tags={PRESET: self._preset})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"runs:/{run_id}/{folder}"
            made = client.create_model_version(
                name,
                source,
                run_id=run_id,
                tags=tags,
                description=about,
                await_creation_for=0,  # it is ready at once where artifacts are not scanned
            )
        version = Version(name, str(made.version), dict(tags), run_id=run_id)
        self._add(version)
        return version

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set the tags that differ from the version's."""
        for key, value in tags.items():
            if version.tags.get(key) != value:
                with self._store.errors():
                    self._store.client.set_model_version_tag(
                        version.name, version.number, key, value
                    )
                version.tags[key] = value

    def point(self, alias: str, version: Version) -> None:
        """Let ``alias`` point at ``version`` and at no other one of its model."""
        if alias in version.aliases:
            return
        with self._store.errors():
            self._store.client.set_registered_model_alias(version.name, alias, version.number)
        for other in self._versions[version.name]:
            other.aliases.discard(alias)
        version.aliases.add(alias)


FORM = "kdci.form"
"""Tag that tells what a version holds of an artifact: `dictionary`, or the student's answer."""


def _version(one: Any) -> Version:
    aliases = set(one.aliases or [])
    return Version(one.name, str(one.version), dict(one.tags), aliases, one.run_id or "")
