"""The params block of the original dataset, of the catalog or of the user's own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from kdci.config.block import Block, Folder, offered
from kdci.config.catalog import CUSTOM, DATASETS, DatasetSpec, numbered


def _dataset_names() -> list[str]:
    return [*DATASETS, CUSTOM]


def _known_dataset(value: str) -> str:
    if value not in _dataset_names():
        raise PydanticCustomError(
            "unknown_name",
            "unknown {what} '{value}'",
            {"what": "dataset", "value": value, "names": _dataset_names()},
        )
    return value


DatasetName = Annotated[str, AfterValidator(_known_dataset), offered(_dataset_names)]
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
                what = "needs {channels} values, one a channel"
                raise PydanticCustomError(
                    "cross_field", what, {"key": key, "channels": self.channels}
                )
        names = self.class_names
        if names and not len({*names}) == len(names) == self.num_classes:
            what = "needs {num_classes} different names"
            raise PydanticCustomError(
                "cross_field", what, {"key": "class_names", "num_classes": self.num_classes}
            )
        return self

    @property
    def spec(self) -> DatasetSpec:
        """Return them as the catalog has those of its datasets."""
        return DatasetSpec(
            name=CUSTOM,
            num_classes=self.num_classes,
            image_size=self.image_size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            crop_padding=self.crop_padding,
            flip=self.flip,
            class_names=self.class_names or numbered(self.num_classes),
            named=bool(self.class_names),
            square_share=1.0,
        )


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
        if (self.name == CUSTOM) != (self.facts is not None):
            what = (
                "custom needs the dataset's facts"
                if self.facts is None
                else ("are of a custom dataset alone")
            )
            raise PydanticCustomError("cross_field", what, {"key": "facts"})
        if self.spec.bundled and self.path is not None:
            raise PydanticCustomError(
                "cross_field", "digits comes with scikit-learn and takes no path", {"key": "path"}
            )
        return self
