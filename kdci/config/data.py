"""The params block of the original dataset, of the catalog or of the user's own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from kdci.config.block import Block, Folder, offered, one_of, refuse
from kdci.config.catalog import CUSTOM, DATASETS, DatasetSpec


def _dataset_names() -> list[str]:
    return [*DATASETS, CUSTOM]


DatasetName = Annotated[str, one_of(_dataset_names, "dataset"), offered(_dataset_names)]
Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


class DataFacts(Block):
    """What has to be known of a dataset that the catalog does not hold."""

    num_classes: Annotated[int, Field(ge=2)]
    """K, the number of classes."""
    image_size: Annotated[int, Field(ge=4, le=1024)]
    """Height and width in pixels that networks see; files of any size are cut square."""
    channels: Literal[1, 3] = 3
    """1: grey; 3: RGB."""
    mean: Annotated[tuple[Mean, ...], Strict(False), Field(min_length=1)]
    """Per channel, where black is 0 and white is 1: what the teacher's images were normalised
    with. Numbers on the 0 to 255 scale are to be divided by 255."""
    std: Annotated[tuple[Deviation, ...], Strict(False), Field(min_length=1)]
    """Per channel, on the scale of `mean`."""
    crop_padding: Annotated[int, Field(ge=0, le=128)] = 0
    """Zero padding in pixels of random crops that keep labels true."""
    flip: bool = False
    """Whether a horizontal flip keeps labels true."""
    class_names: Annotated[tuple[str, ...], Strict(False)] = ()
    """In label order; none: their numbers."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                refuse(key, f"needs {self.channels} values, one a channel")
        names = self.class_names
        if names and not len({*names}) == len(names) == self.num_classes:
            refuse("class_names", f"needs {self.num_classes} different names")
        return self

    @property
    def spec(self) -> DatasetSpec:
        """Return them as the catalog has those of its datasets."""
        stated = self.model_dump(exclude={"class_names"})
        return DatasetSpec(CUSTOM, **stated, stated_names=self.class_names, square_share=1.0)


class Data(Block):
    """The original dataset: opened by the teacher stage and by evaluate, by nothing else."""

    name: DatasetName
    """Of the catalog; or `custom`, whose `facts` stand here."""
    path: Folder | None = None
    """Folder that holds the dataset; digits needs none, nor does an adopted teacher."""
    test: Literal["test"] | None = "test"
    """The split students are scored on; null: there is no test data, agreement is reported."""
    facts: DataFacts | None = None
    """Of a custom dataset alone."""

    @property
    def spec(self) -> DatasetSpec:
        """Return the facts of the dataset."""
        return self.facts.spec if self.facts is not None else DATASETS[self.name]

    @model_validator(mode="after")
    def _facts_fit(self) -> Self:
        if self.name == CUSTOM and self.facts is None:
            refuse("facts", "custom needs the dataset's facts")
        if self.name != CUSTOM and self.facts is not None:
            refuse("facts", "are of a custom dataset alone")
        if self.spec.bundled and self.path is not None:
            refuse("path", "digits comes with scikit-learn and takes no path")
        return self
