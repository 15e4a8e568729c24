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
        text: One or two sentences.
        tables: Numbers of the tables.
        datasets: Keys of the datasets.
        pairs: Teacher and student.
        methods: Keys of the methods.
        variants: Arms; the plain method alone if not given.
        scratch: Whether it is about networks trained on the original data too.
    """

    text: str
    tables: tuple[int, ...] = ()
    datasets: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("vanilla",)
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


FOOTNOTES = {
    "best-epoch": Footnote(
        "The public code of these methods reports the best epoch on the test split, and quoted "
        "rows are such numbers; ours are of the last epoch, which is never higher on one run.",
        scratch=True,
        variants=(),
    ),
    "quoted": Footnote(
        "Equal to the table of FastDFKD's README to the last digit (DeepInv with 2,000 steps, Fast "
        "with 10): quoted, not run again for this paper.",
        tables=(1,),
        methods=("dafl", "fast", "deepinv"),
        scratch=True,
    ),
    "quoted-imagenet": Footnote(
        "Equal to FastDFKD's own ImageNet table to the last digit: quoted, not run again.",
        tables=(3,),
        methods=("fast",),
    ),
    "two-dafl-rows": Footnote(
        "CMI's paper prints another DAFL row of CIFAR-100: 74.47, 57.29, 22.50, 34.66, 40.00.",
        tables=(1,),
        datasets=("cifar100",),
        methods=("dafl",),
    ),
    "cmi-run-again": Footnote(
        "Not the row that CMI published, which is 94.84, 91.13, 90.01, 92.78, 92.52 on CIFAR-10 "
        "and 77.04, 70.56, 57.91, 68.88, 68.75 on CIFAR-100.",
        tables=(1,),
        methods=("cmi",),
    ),
    "mosaick-imagenet-pool": Footnote(
        "Equal or near (resnet-34: 75.81 there) to MosaicKD's row with a subset of ImageNet as "
        "open-world images; the vgg-11 number of the same line is of other images.",
        tables=(1,),
        datasets=("cifar100",),
        pairs=(R34_R18, *WRN_PAIRS),
        methods=("mosaick",),
    ),
    "mosaick-cifar10-pool": Footnote(
        "Near to MosaicKD's row with CIFAR-10 as open-world images (71.56); its row with a subset "
        "of ImageNet, which the rest of this line is of, has 68.94 here.",
        tables=(1,),
        datasets=("cifar100",),
        pairs=(VGG11_R18,),
        methods=("mosaick",),
    ),
    "mosaick-pool-unknown": Footnote(
        "MosaicKD prints no such row: it was run for this paper, on open-world images that are not "
        "named.",
        tables=(1,),
        datasets=("cifar10",),
        methods=("mosaick",),
    ),
    "dfnd-run-again": Footnote(
        "DFND was run again with another teacher: its own paper has 94.02 on CIFAR-10 and 76.35 on "
        "CIFAR-100.",
        tables=(1, 5),
        datasets=("cifar10", "cifar100"),
        pairs=(R34_R18,),
        methods=("dfnd",),
    ),
    "swapped": Footnote(
        "Table 1 has Fast 74.34 and DFND 74.42 for vanilla resnet-34 to resnet-18 on CIFAR-100, "
        "Table 5 (w/o Z) has Fast 74.42 and DFND 74.34: swapped in one of them. FastDFKD's own "
        "number is 74.34, so Table 1 seems right.",
        tables=(1, 5),
        datasets=("cifar100",),
        pairs=(R34_R18,),
        methods=("fast", "dfnd"),
    ),
    "dfnd-95-38": Footnote(
        "The same cell is 95.44 in Tables 1 and 5 and 95.38 in Table 4.",
        tables=(1, 4, 5),
        datasets=("cifar10",),
        pairs=(R34_R18,),
        methods=("dfnd",),
        variants=("kdci",),
    ),
    "headline": Footnote(
        "The paper's headline, DeepInv improved by up to 15.54 points on CIFAR-100, is this cell: "
        "54.13 to 69.67 with vgg-11. Table 3 has a larger one, 18.29: DFND to mobilenetv2.",
        tables=(1, 5),
        datasets=("cifar100",),
        pairs=(VGG11_R18,),
        methods=("deepinv",),
        variants=("kdci",),
    ),
    "stem": Footnote(
        "Which first layers the ResNets have on 64 pixels is not stated, and 52.74 % is low for a "
        "teacher whose stem keeps the resolution: ours may be another network.",
        tables=(2,),
        scratch=True,
        variants=(),
    ),
    "pair": Footnote(
        "Table 4 names no pair. Its original column equals that of resnet-34 to resnet-18 in "
        "Table 1, but for one number.",
        tables=(4,),
        variants=(),
    ),
}
"""By their short names, as `report/ledger.json` has them, in the order that reports list them."""


def footnotes_of(cell: PublishedCell) -> tuple[str, ...]:
    """Return the keys of the footnotes on a cell."""
    return tuple(key for key, note in FOOTNOTES.items() if note.applies(cell))
