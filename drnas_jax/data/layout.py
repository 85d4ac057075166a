"""Decides from the names of folders which of them are splits and which are classes."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drnas_jax.data.listing import Listing
from drnas_jax.data.names import (
    comparable,
    composed,
    distinct,
    hinted_kind,
    is_image,
    listed,
    printable,
    split_kind,
)
from drnas_jax.data.sources.base import hold_out
from drnas_jax.errors import UserError

# A single folder of this name in test/ holds images of all classes.
_UNSORTED = frozenset(
    ["all", "data", "images", "img", "imgs", "test", "unknown", "unlabeled", "unlabelled"]
)

_IN_SUB_FOLDERS = "images in sub-folders of a class belong to it"
_PICTURES = frozenset(["image", "images", "img", "imgs"])
_ANNOTATIONS = frozenset(["annotation", "annotations", "label", "labels", "mask", "masks"])

Classes = dict[str, list[str]]  # name of a class -> paths of its images


@dataclass(frozen=True)
class Layout:
    """The classes and the splits of a folder of images.

    Attributes:
      classes: Names of the classes, sorted, in Unicode's composed form (NFC).
      files: Paths of the images of each split, 'train' and 'test', below the folder.
      labels: Label of each file, int32 [n], by split.
      summary: What was read and what was left out, for the user.
    """

    classes: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    labels: dict[str, np.ndarray]
    summary: str


def layout_of(listing: Listing, root: str, read: Callable[[str], str]) -> Layout:
    """Decides to which split and class each image belongs.

    Without a folder of test images, a fifth of each class is held out, the same images every time.

    Args:
      listing: What the folder holds.
      root: Path of the folder, for messages.
      read: Function that returns the text of a file, given its path below the folder.

    Raises:
      UserError: The folder can be read in several ways, or in none.
    """
    return _Reader(root, read).layout(listing)


@dataclass
class _Reader:
    """Reads one folder, and collects remarks for the summary.

    Attributes:
      root: Path of the folder, for messages.
      read: Function that returns the text of a file, given its path below the folder.
      left_out: Folders that are left out, with the reason.
      remarks: Other remarks for the summary.
      others: Number of left-out files and folders, by kind.
    """

    root: str
    read: Callable[[str], str]
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def layout(self, listing: Listing) -> Layout:
        self._count_system(listing)
        if not listing.folders:
            raise UserError(
                f"{self.root} has no folders, only {len(listing.files):,} files: put the images of "
                "each class into a folder with its name"
            )
        whole, (prefix, listing) = listing, _descend(listing, "")
        if prefix:
            self._count_loose(whole, "")
        if len(listing.folders) == 1 and (loose := _images(listing)):
            raise UserError(
                f"{self._path(prefix)} has one folder, {next(iter(listing.folders))}/, and "
                f"{loose[0]} beside it: put the images of each class into a folder, or move them "
                "away"
            )
        splits: dict[str, list[str]] = {}
        for name in sorted(listing.folders):
            splits.setdefault(split_kind(name), []).append(name)
        rest = splits.pop("", [])
        has_classes = any(
            _descend(listing.folders[name], "")[1].folders for name in splits.get("train", ())
        )
        beside = [name for kind in ("test", "val") for name in splits.get(kind, ())]
        if has_classes and beside:
            return self._given_splits(listing, prefix, splits, rest)
        if splits and not rest:
            raise self._no_classes(listing, splits)
        if has_classes and not _images(listing.folders[splits["train"][0]]):
            name = splits["train"][0]
            raise UserError(
                f"{self._path(prefix)} has {name}/ with folders inside, but no test/ or val/ "
                f"beside it, only {listed(rest)}: name the folder of test images test/, or move "
                "what is not a class away from the class folders"
            )
        self._check_names(listing, prefix)
        return self._held_out(self._classes(listing, prefix), prefix)

    def _check_names(self, listing: Listing, prefix: str) -> None:
        """Raises UserError if folders that would be classes have the names of something else."""
        kinds = {name: hinted_kind(name) for name in sorted(listing.folders)}
        nested = any(
            kind == "train" and _descend(listing.folders[name], "")[1].folders
            for name, kind in kinds.items()
        )
        found = set(kinds.values())
        if "train" in found and found & {"test", "val"} and (nested or "" not in found):
            raise UserError(
                f"{self._path(prefix)} has folders {listed(kinds)}, which do not look like "
                "classes: name the folder of training images train/ and that of test images test/, "
                "or rename the classes"
            )
        pictures, notes = (
            [name for name in kinds if name.casefold() in names]
            for names in (_PICTURES, _ANNOTATIONS)
        )
        if pictures and notes:
            raise UserError(
                f"{self._path(prefix)} has {pictures[0]}/ beside {notes[0]}/, which do not look "
                f"like classes: move {notes[0]}/ away and put the images into "
                f"{pictures[0]}/CLASS/, or rename the classes"
            )

    def _no_classes(self, listing: Listing, splits: Mapping[str, Sequence[str]]) -> UserError:
        names = ", ".join(sorted(listing.folders))
        train = next(iter(splits.get("train", ())), None)
        if train is None:
            return UserError(
                f"{self.root} has folders {names}, but no train/: name the folder of training "
                "images train/"
            )
        return UserError(
            f"{self.root} has folders {names}, but there is no folder for each class in its "
            f"{train}/: put the images into {train}/CLASS/ and test/CLASS/"
        )

    def _given_splits(
        self, listing: Listing, prefix: str, splits: Mapping[str, list[str]], rest: Iterable[str]
    ) -> Layout:
        for names in splits.values():
            if len(names) > 1:
                raise UserError(
                    f"{self._path(prefix)} has {' and '.join(f'{name}/' for name in names)}: keep "
                    "one of them, and rename or remove the others"
                )
        (train,) = splits["train"]
        self.left_out += [f"{name}/" for name in rest]
        self._count_loose(listing, prefix)
        inside, folder = _descend(listing.folders[train], f"{prefix}{train}/")
        classes, val = self._classes(folder, inside), splits.get("val", [])
        reasons: dict[str, str] = {}
        for name in [*splits.get("test", []), *val]:
            found = self._labelled(listing.folders[name], prefix, name, train, classes)
            if isinstance(found, str):
                reasons[name] = found
                continue
            self.left_out += [
                f"{other}/ (the search splits the training images itself)"
                for other in val
                if other != name
            ]
            self.left_out += [f"{other}/ ({reason})" for other, reason in reasons.items()]
            return self._both_given(classes, found, train, name)
        if val:
            raise UserError(
                f"{self.root}/{prefix}{val[0]}/ cannot be the test split ({reasons[val[0]]}): put "
                f"its images into {val[0]}/CLASS/, or move it away to hold out a fifth of {train}/"
            )
        self.left_out += [f"{other}/ ({reason})" for other, reason in reasons.items()]
        return self._held_out(classes, inside)

    def _labelled(
        self, listing: Listing, prefix: str, name: str, train: str, classes: Classes
    ) -> Classes | str:
        """Returns the images of each class of a split, or the reason why it has no labels."""
        for file in listing.files:
            if file.lower() == f"{name.lower()}_annotations.txt":  # as in tiny-imagenet-200
                self.remarks.append(f"classes of {name}/ from {file}")
                rest = [other for other in listing.files if other != file]
                images = dataclasses.replace(listing, files=rest)
                return self._annotated(images, f"{prefix}{name}/", file, train, classes)
        inside, folder = _descend(listing, f"{prefix}{name}/")
        if not folder.folders:
            return "no folder for each class" if _images(folder) else "it is empty"
        if len(folder.folders) == 1 and next(iter(folder.folders)).lower() in _UNSORTED:
            return "no folder for each class"
        return self._matched(self._classes(folder, inside), name, train, classes)

    def _matched(self, found: Classes, name: str, train: str, classes: Classes) -> Classes:
        """Returns the images of a split under the names of the training classes."""
        rest, wanted = (sorted(set(a) - set(b)) for a, b in ((found, classes), (classes, found)))
        by_key = {comparable(other): other for other in rest}
        renamed = {by_key[comparable(own)]: own for own in wanted if comparable(own) in by_key}
        if len(renamed) != len(rest) or len(rest) != len(wanted):
            only_in = [
                f"only {split}/ has {listed(map(distinct, names))}"
                for split, names in ((train, wanted), (name, rest))
                if names
            ]
            raise UserError(
                f"the classes of {train}/ and {name}/ in {self.root} differ, since "
                f"{' and '.join(only_in)}: give the folders of each class one name, and add or "
                "remove those without a counterpart"
            )
        if renamed:
            pairs = [f"{name}/{other} is {own}" for other, own in renamed.items()]
            self.remarks.append(listed(pairs))
        return {renamed.get(other, other): files for other, files in found.items()}

    def _annotated(
        self, listing: Listing, prefix: str, file: str, train: str, classes: Classes
    ) -> Classes:
        """Returns the images of each class, read from lines of a text file: image, tab, class."""
        images: dict[str, str] = {}
        for image in self._all_images(listing, prefix):
            if (other := images.setdefault(os.path.basename(image), image)) != image:
                raise UserError(
                    f"{self.root}/{other} and {self.root}/{image} have the same name, so a line of "
                    f"{file} means both: rename or remove one of them"
                )
        path = f"{self.root}/{prefix}{file}"
        found: Classes = {}
        label_of: dict[str, str] = {}
        for number, line in enumerate(self.read(prefix + file).splitlines(), 1):
            if not line.strip():
                continue
            image, label, *_ = [*line.split("\t"), ""]
            label = composed(label.strip())
            if not label or label_of.setdefault(image, label) != label:
                raise UserError(
                    f"line {number} of {path} is {line[:80]!r}: expected the name of an image, a "
                    "tab and its class, once for each image"
                )
        if missing := sorted(set(images) - set(label_of)):
            raise UserError(
                f"{images[missing[0]]} is not in {path}: add a line for it, or remove the image"
            )
        if absent := sorted(set(label_of) - set(images)):
            raise UserError(
                f"{path} names {absent[0]}, which is not there: add the image, or remove the line"
            )
        for image in sorted(images):
            found.setdefault(label_of[image], []).append(images[image])
        return self._matched(found, prefix.rstrip("/"), train, classes)

    def _classes(self, listing: Listing, prefix: str) -> Classes:
        """Returns the images of each class folder, sorted by the composed names of the classes."""
        self._count_loose(listing, prefix)
        classes: Classes = {}
        folder_of: dict[str, str] = {}
        for name in sorted(listing.folders, key=lambda name: (composed(name), name)):
            inside, folder = listing.folders[name], f"{self.root}/{prefix}{name}"
            if (other := folder_of.setdefault(composed(name), name)) != name:
                raise UserError(
                    f"class folders {other!a} and {name!a} in {self._path(prefix)} look "
                    "alike: put their images together, or rename one"
                )
            kinds = {split_kind(other) for other in inside.folders}
            if "train" in kinds and kinds & {"test", "val"}:
                raise UserError(
                    f"class folder {folder} has folders {listed(sorted(inside.folders))}: put "
                    "the split above the class, as in train/CLASS/ and test/CLASS/"
                )
            files = self._all_images(inside, f"{prefix}{name}/")
            if not files:
                raise UserError(f"class folder {folder} has no images: add some, or remove it")
            if inside.folders and _IN_SUB_FOLDERS not in self.remarks:
                self.remarks.append(_IN_SUB_FOLDERS)
            classes[composed(name)] = files
        return classes

    def _held_out(self, classes: Classes, prefix: str) -> Layout:
        for name, files in classes.items():
            if len(files) < 2:
                raise UserError(
                    f"class folder {self.root}/{prefix}{name} has 1 image: add another one, since "
                    "a fifth of each class is held out for the test"
                )
        files, labels = _flat(classes, list(classes))
        index = hold_out(labels)
        train, test = (tuple(files[i] for i in chosen) for chosen in index)
        where = f" from {prefix}" if prefix else ""
        return Layout(
            tuple(classes),
            dict(train=train, test=test),
            dict(train=labels[index[0]], test=labels[index[1]]),
            self._summary(
                list(classes),
                f"{len(train):,} training images{where}",
                f"{len(test):,} test images, a fifth of each class",
            ),
        )

    def _both_given(self, train: Classes, test: Classes, train_name: str, test_name: str) -> Layout:
        names = list(train)
        splits = dict(train=_flat(train, names), test=_flat(test, names))
        return Layout(
            tuple(names),
            {split: tuple(files) for split, (files, _) in splits.items()},
            {split: labels for split, (_, labels) in splits.items()},
            self._summary(
                names,
                f"{len(splits['train'][0]):,} training images from {train_name}/",
                f"{len(splits['test'][0]):,} test images from {test_name}/",
            ),
        )

    def _summary(self, classes: Sequence[str], train: str, test: str) -> str:
        count = f"{len(classes):,} class{'es' if len(classes) != 1 else ''}"
        parts = [f"{count} ({listed(classes)}), {train}, {test}", *self.remarks]
        others = [
            f"{count:,} {what if count > 1 else what.replace('files', 'file')}"
            for what, count in sorted(self.others.items())
        ]
        if left_out := [*self.left_out, *others]:
            parts.append(f"left out: {', '.join(left_out)}")
        return printable("; ".join(parts))

    def _path(self, prefix: str) -> str:
        return f"{self.root}/{prefix}" if prefix else self.root

    def _all_images(self, listing: Listing, prefix: str) -> list[str]:
        """Returns the paths of all images in and below a folder, and counts its other files."""
        paths = list(listing.paths(prefix))
        images = [path for path in paths if is_image(path)]
        if len(images) < len(paths):
            names = (os.path.basename(path).lower() for path in set(paths) - set(images))
            self.others.update(f"{os.path.splitext(name)[1] or name} files" for name in names)
        return images

    def _count_loose(self, listing: Listing, prefix: str) -> None:
        for name in listing.broken:
            if not os.path.splitext(name)[1]:  # it may have led to a folder
                raise UserError(f"{self.root}/{prefix}{name} is a broken link: fix or remove it")
        if listing.files:
            self.others["files beside the folders"] += len(listing.files)

    def _count_system(self, listing: Listing) -> None:
        self.others.update(
            "._ files" if name.startswith("._") else name for name in listing.all_system()
        )


def _descend(listing: Listing, prefix: str) -> tuple[str, Listing]:
    """Steps into the folders that only wrap one other, if several folders lie below them."""
    inside, path = listing, prefix
    while len(inside.folders) == 1 and not _images(inside):
        ((name, inside),) = inside.folders.items()
        path += f"{name}/"
    return (path, inside) if len(inside.folders) > 1 and not _images(inside) else (prefix, listing)


def _images(listing: Listing) -> list[str]:
    return [name for name in listing.files if name not in listing.broken and is_image(name)]


def _flat(classes: Classes, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    counts = np.array([len(classes[name]) for name in names], int)
    labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    return [file for name in names for file in classes[name]], labels
