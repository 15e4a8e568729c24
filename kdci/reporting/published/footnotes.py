"""What is known about single numbers of the paper's tables: contradictions and provenance.

Each footnote names the cells it is about. Provenance is by comparison: a line that equals another
paper's to the last digit was taken from there, and one that does not was run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdci.reporting.published.tables import R34_R18, VGG11_R18, WRN_PAIRS, Pair, PublishedCell


@dataclass(frozen=True)
class Footnote:
    """A remark on some cells of the tables; an empty tuple: whatever that value is.

    Attributes:
        key: Short name, as `report/ledger.json` has it.
        text: One or two sentences.
        tables: Numbers of the tables.
        datasets: Keys of the datasets.
        pairs: Teacher and student.
        methods: Keys of the methods.
        variants: Arms.
        scratch: Whether it is about networks trained on the original data too.
    """

    key: str
    text: str
    tables: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    scratch: bool = False

    def applies(self, cell: PublishedCell) -> bool:
        """Tell whether this is about a cell."""
        if cell.method is None:
            wanted = self.scratch
        else:
            wanted = _among(cell.method, self.methods) and _among(cell.variant, self.variants)
        return (
            wanted
            and _among(cell.table, self.tables)
            and _among(cell.dataset, self.datasets)
            and _among((cell.teacher, cell.student), self.pairs)
        )


def _among(value: object, allowed: tuple[object, ...]) -> bool:
    return not allowed or value in allowed


_VANILLA = ("vanilla",)

FOOTNOTES: tuple[Footnote, ...] = (
    Footnote(
        "best-epoch",
        "The public code of these methods reports the best epoch on the test split, and quoted "
        "rows are such numbers; ours are of the last epoch, which is never higher on one run.",
        scratch=True,
    ),
    Footnote(
        "quoted",
        "Equal to the table of FastDFKD's README to the last digit (DeepInv with 2,000 steps, Fast "
        "with 10): quoted, not run again for this paper.",
        tables=(1,),
        methods=("dafl", "fast", "deepinv"),
        variants=_VANILLA,
        scratch=True,
    ),
    Footnote(
        "quoted-imagenet",
        "Equal to FastDFKD's own ImageNet table to the last digit: quoted, not run again.",
        tables=(3,),
        methods=("fast",),
        variants=_VANILLA,
    ),
    Footnote(
        "two-dafl-rows",
        "CMI's paper prints another DAFL row of CIFAR-100: 74.47, 57.29, 22.50, 34.66, 40.00.",
        tables=(1,),
        datasets=("cifar100",),
        methods=("dafl",),
        variants=_VANILLA,
    ),
    Footnote(
        "cmi-run-again",
        "Not the row that CMI published, which is 94.84, 91.13, 90.01, 92.78, 92.52 on CIFAR-10 "
        "and 77.04, 70.56, 57.91, 68.88, 68.75 on CIFAR-100.",
        tables=(1,),
        methods=("cmi",),
        variants=_VANILLA,
    ),
    Footnote(
        "mosaick-imagenet-pool",
        "Equal or near (resnet-34: 75.81 there) to MosaicKD's row with a subset of ImageNet as "
        "open-world images; the vgg-11 number of the same line is of other images.",
        tables=(1,),
        datasets=("cifar100",),
        pairs=(R34_R18, *WRN_PAIRS),
        methods=("mosaick",),
        variants=_VANILLA,
    ),
    Footnote(
        "mosaick-cifar10-pool",
        "Near to MosaicKD's row with CIFAR-10 as open-world images (71.56); its row with a subset "
        "of ImageNet, which the rest of this line is of, has 68.94 here.",
        tables=(1,),
        datasets=("cifar100",),
        pairs=(VGG11_R18,),
        methods=("mosaick",),
        variants=_VANILLA,
    ),
    Footnote(
        "mosaick-pool-unknown",
        "MosaicKD prints no such row: it was run for this paper, on open-world images that are not "
        "named.",
        tables=(1,),
        datasets=("cifar10",),
        methods=("mosaick",),
        variants=_VANILLA,
    ),
    Footnote(
        "dfnd-run-again",
        "DFND was run again with another teacher: its own paper has 94.02 on CIFAR-10 and 76.35 on "
        "CIFAR-100.",
        tables=(1, 5),
        datasets=("cifar10", "cifar100"),
        pairs=(R34_R18,),
        methods=("dfnd",),
        variants=_VANILLA,
    ),
    Footnote(
        "swapped",
        "Table 1 has Fast 74.34 and DFND 74.42 for vanilla resnet-34 to resnet-18 on CIFAR-100, "
        "Table 5 (w/o Z) has Fast 74.42 and DFND 74.34: swapped in one of them. FastDFKD's own "
        "number is 74.34, so Table 1 seems right.",
        tables=(1, 5),
        datasets=("cifar100",),
        pairs=(R34_R18,),
        methods=("fast", "dfnd"),
        variants=_VANILLA,
    ),
    Footnote(
        "dfnd-95-38",
        "The same cell is 95.44 in Tables 1 and 5 and 95.38 in Table 4.",
        tables=(1, 4, 5),
        datasets=("cifar10",),
        pairs=(R34_R18,),
        methods=("dfnd",),
        variants=("kdci",),
    ),
    Footnote(
        "headline",
        "The paper's headline, DeepInv improved by up to 15.54 points on CIFAR-100, is this cell: "
        "54.13 to 69.67 with vgg-11. Table 3 has a larger one, 18.29: DFND to mobilenetv2.",
        tables=(1, 5),
        datasets=("cifar100",),
        pairs=(VGG11_R18,),
        methods=("deepinv",),
        variants=("kdci",),
    ),
    Footnote(
        "stem",
        "Which first layers the ResNets have on 64 pixels is not stated, and 52.74 % is low for a "
        "teacher whose stem keeps the resolution: ours may be another network.",
        tables=(2,),
        scratch=True,
    ),
    Footnote(
        "pair",
        "Table 4 names no pair. Its original column equals that of resnet-34 to resnet-18 in "
        "Table 1, but for one number.",
        tables=(4,),
    ),
)
"""In the order that reports list them."""


def footnotes_of(cell: PublishedCell) -> tuple[str, ...]:
    """Return the keys of the footnotes on a cell."""
    return tuple(note.key for note in FOOTNOTES if note.applies(cell))
