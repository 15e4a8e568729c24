"""The params block of the unlabelled images that sampling-based methods choose from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from kdci.config.block import Block, Folder, refuse


class OpenWorldPart(Block):
    """One source of open-world images."""

    source: Literal["photographs", "parquet", "folder"] = "photographs"
    """`photographs`: crops of the two photographs that come with scikit-learn."""
    path: Folder | None = None
    """Folder of Parquet or image files; photographs need none."""
    num_images: Annotated[int, Field(ge=0)] = 20_000
    """Number of images taken; 0: all there are, of Parquet and folders."""

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        _require_path(self.source, self.path, self.num_images)
        return self


class OpenWorld(Block):
    """The unlabelled images that sampling-based methods choose from."""

    source: Literal["photographs", "parquet", "folder", "mixed"] = "photographs"
    """As of a part; `mixed`: the parts that `sources` lists, one after the other."""
    path: Folder | None = None
    """As of a part."""
    num_images: Annotated[int, Field(ge=0)] = 20_000
    """As of a part; of `mixed` the sum's upper bound, 0: all that the parts give."""
    sources: Annotated[tuple[OpenWorldPart, ...], Strict(False)] = ()
    """What `mixed` is mixed from."""
    max_bad_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of images that may be unreadable or damaged before the pool is refused."""
    engine: Literal["local", "ray"] = "local"
    """What decodes and scores them: `local`, this process; `ray`, a cluster. Both choose alike."""

    @property
    def parts(self) -> tuple[OpenWorldPart, ...]:
        """The sources, one or several."""
        if self.source == "mixed":
            return self.sources
        return (OpenWorldPart(source=self.source, path=self.path, num_images=self.num_images),)

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if (self.source == "mixed") != bool(self.sources):
            what = "lists nothing to mix" if not self.sources else "go with source: mixed"
            refuse("sources", what)
        if self.source != "mixed":
            _require_path(self.source, self.path, self.num_images)
        elif self.path is not None:
            refuse("path", "belongs to each of the sources")
        return self


def _require_path(source: str, path: str | None, num_images: int) -> None:
    if (source == "photographs") != (path is None):
        wants = "takes no path" if source == "photographs" else "needs a path"
        refuse("path", f"{source} {wants}")
    if source == "photographs" and num_images == 0:
        refuse("num_images", "photographs have crops without end: say how many")
