"""The published files of OC20: names, sizes and MD5 sums, what is in them, and where in a directory they lie.

Source: the data set's page in fairchem's documentation (docs/core/datasets/oc20.md), files of February 2021; the layout
inside the archives is that of their README files and of fairchem's download script.
"""

from dataclasses import dataclass

from equicat.errors import InputError, nearest

MIRROR = "https://dl.fbaipublicfiles.com/opencatalystproject/data"
"""Where OC20 is published."""
MAPPING = "oc20_data_mapping.pkl"
"""Bulk, surface, adsorbate and anomaly by system. It was replaced in 2025, and no sum of the new file is published."""

VALIDATION = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
TEST = ("test_id", "test_ood_ads", "test_ood_cat", "test_ood_both")
LABELS = {"s2ef": ("energy", "forces"), "is2re": ("relaxed_energy", "relaxed_positions")}
"""Labels of every split but those for the leaderboard, by task."""

_G = 1024.0**3


@dataclass(frozen=True)
class Archive:
    """One file to download."""

    name: str
    md5: str
    size: float
    """Size in bytes, as rounded on the page."""

    @property
    def folder(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Split:
    """One split of a task: what it is called in a data set of ours, and where it comes from."""

    task: str
    published: str
    """The published name: ``200k``, ``val_id`` ..."""
    name: str
    """The directory in a data set of ours: ``train``, ``val_id`` ..."""
    archive: Archive
    inside: str
    """The path of the split in the archive."""
    n_structures: int
    unpacked: float
    """Mean size in bytes of a structure in the unpacked files; the page has the size of all splits of an archive."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that its structures must have."""
        return () if self.name in TEST else LABELS[self.task]

    def places(self) -> list[str]:
        """Where the split may lie below a directory: as unpacked, or as fairchem's scripts arrange it."""
        arranged = f"all/{self.name}" if self.name in (*VALIDATION, *TEST) else f"{self.published}/train"
        return [
            f"{self.archive.folder}/{self.inside}",
            self.inside,
            f"{self.archive.folder}/{self.archive.folder}",
            self.archive.folder,
            f"data/{self.task}/{arranged}",
            f"{self.task}/{arranged}",
            arranged,
            self.name,
        ]


def _raw(published: str, suffix: str, md5: str, gib: float, n: int) -> Split:
    """A split of compressed frames in an archive of its own."""
    archive = Archive(f"s2ef_{suffix}.tar", md5, gib * _G)
    name = "train" if suffix.startswith("train") else published
    # Unpacking the archive leaves the frames compressed.
    return Split("s2ef", published, name, archive, f"s2ef_{suffix}/s2ef_{suffix}", n, gib * _G / n)


_S2EF_TEST = Archive("s2ef_test_lmdbs.tar.gz", "bcada432482f6e87b24e14b6b744992a", 30 * _G)
_IS2RE = Archive("is2res_train_val_test_lmdbs.tar.gz", "cfc04dd2f87b4102ab2f607240d25fb1", 8.1 * _G)
_S2EF_TEST_COUNTS = dict(zip(TEST, (999_736, 999_859, 999_826, 999_973), strict=True))
_IS2RE_COUNTS = {
    "10k": 10_000,
    "100k": 100_000,
    "all": 460_328,
    **dict(zip(VALIDATION, (24_943, 24_961, 24_963, 24_987), strict=True)),
    **dict(zip(TEST, (24_948, 24_930, 24_965, 24_985), strict=True)),
}


def _s2ef_test(name: str, n: int) -> Split:
    n_all = sum(_S2EF_TEST_COUNTS.values())
    return Split("s2ef", name, name, _S2EF_TEST, f"test_data/s2ef/all/{name}", n, 415 * _G / n_all)


def _is2re(published: str, n: int) -> Split:
    is_train = published not in (*VALIDATION, *TEST)
    inside = f"data/is2re/{published}/train" if is_train else f"data/is2re/all/{published}"
    unpacked = 97 * _G / sum(_IS2RE_COUNTS.values())
    return Split("is2re", published, "train" if is_train else published, _IS2RE, inside, n, unpacked)


_ALL = [
    _raw("200k", "train_200K", "f8d0909c2623a393148435dede7d3a46", 0.336, 200_000),
    _raw("2M", "train_2M", "953474cb93f0b08cdc523399f03f7c36", 3.4, 2_000_000),
    _raw("20M", "train_20M", "863bc983245ffc0285305a1850e19cf7", 34.0, 20_000_000),
    _raw("all", "train_all", "12a7087bfd189a06ccbec9bc7add2bcd", 225.0, 133_934_018),
    _raw("val_id", "val_id", "f57f7f5c1302637940f2cc858e789410", 1.7, 999_866),
    _raw("val_ood_ads", "val_ood_ads", "431ab0d7557a4639605ba8b67793f053", 1.7, 999_838),
    _raw("val_ood_cat", "val_ood_cat", "532d6cd1fe541a0ddb0aa0f99962b7db", 1.7, 999_809),
    _raw("val_ood_both", "val_ood_both", "5731862978d80502bbf7017d68c2c729", 1.9, 999_944),
    _raw("rattled", "rattled", "40431149b27b64ce1fb40cac4e2e064b", 29.0, 16_677_031),
    _raw("md", "md", "9fed845aaab8fb4bf85e3a8db57796e0", 42.0, 38_315_405),
    *(_s2ef_test(name, n) for name, n in _S2EF_TEST_COUNTS.items()),
    *(_is2re(name, n) for name, n in _IS2RE_COUNTS.items()),
]
PUBLISHED_SPLITS = {task: {s.published: s for s in _ALL if s.task == task} for task in LABELS}
"""All published splits: task, then name."""


def splits_named(task: str, names: str) -> list[Split]:
    """Splits from a list such as ``200k,val``; ``val`` and ``test`` are all four of their kind.

    Raises:
        InputError: for an unknown task or split, or two that would be one directory of the data set.
    """
    task = {"is2rs": "is2re"}.get(task, task)
    if task not in PUBLISHED_SPLITS:
        raise InputError(f"unknown task {task!r}{nearest(task, PUBLISHED_SPLITS)}; tasks: s2ef, is2re, is2rs")
    wanted: list[str] = []
    for name in names.split(","):
        wanted += {"val": VALIDATION, "test": TEST}.get(name.strip(), (name.strip(),))
    splits = []
    for name in wanted:
        if name not in PUBLISHED_SPLITS[task]:
            known = ", ".join([*PUBLISHED_SPLITS[task], "val", "test"])
            raise InputError(
                f"task {task} has no split {name!r}{nearest(name, PUBLISHED_SPLITS[task])}; its splits: {known}"
            )
        splits.append(PUBLISHED_SPLITS[task][name])
    directories = [s.name for s in splits]
    if len(set(directories)) < len(directories):
        raise InputError(f"--split {names}: two of them would be the same directory; one training set a data set")
    return splits
