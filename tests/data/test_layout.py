"""The splits and classes that are found by names only: what is read, and what is refused."""

import unicodedata

import numpy as np
import pytest

from drnas_jax.data.layout import layout_of
from drnas_jax.data.listing import Listing
from drnas_jax.data.names import is_system
from drnas_jax.errors import UserError


def listing_of(paths, broken=()):
    """Makes a listing of paths, as `scan` does of a folder.

    Args:
      paths: Paths of files with `/`; one that ends in `/` is an empty folder.
      broken: Paths of the broken links among them.
    """
    root, leads_nowhere = Listing(), set(broken)
    for path in paths:
        *parts, name = path.split("/")
        listing = root
        for part in parts:
            if is_system(part):
                if part not in listing.system:
                    listing.system.append(part)
                break
            listing = listing.folders.setdefault(part, Listing())
        else:
            if is_system(name):
                listing.system.append(name)
            elif name:
                listing.files.append(name)
                if path in leads_nowhere:
                    listing.broken.append(name)
    return root


def images(*folders, count=3, suffix="png"):
    return [f"{folder}/{i}.{suffix}" for folder in folders for i in range(count)]


def read(paths, texts=(), broken=()):
    return layout_of(listing_of(paths, broken), "my_images", dict(texts).__getitem__)


def refused(paths, texts=(), broken=()):
    with pytest.raises(UserError) as raised:
        read(paths, texts, broken)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def of_class(layout, split, name):
    """Returns the files of a class in a split."""
    labels = layout.labels[split] == layout.classes.index(name)
    return [file for file, chosen in zip(layout.files[split], labels, strict=True) if chosen]


def assert_splits(layout, train, test, classes=("cat", "dog")):
    """Checks that both splits hold all images below these folders, each under its class."""
    assert layout.classes == classes
    for split, folder in (("train", train), ("test", test)):
        for name in classes:
            assert of_class(layout, split, name) == images(f"{folder}/{name}")


TRAIN = images("train/cat", "train/dog")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("TRAIN", "VAL"),
        ("train", "valid"),
        ("train", "Validation"),
        ("Training Data", "Testing Data"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "photos/", "a/b/"])
def test_names_of_splits(train, test, wrapper):
    # Catches a search on two classes called Training and Testing.
    train, test = wrapper + train, wrapper + test
    beside = ["__MACOSX/photos/._x", "README.txt"] if wrapper else ["notes.txt"]
    layout = read([*images(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog"), *beside])
    assert_splits(layout, train, test)
    for text in (
        "2 classes (cat, dog)",
        f"6 training images from {train.removeprefix(wrapper)}/",
        f"6 test images from {test.removeprefix(wrapper)}/",
        "1 file beside the folders",
    ):
        assert text in layout.summary


def test_a_split_in_a_folder_of_its_own_name():
    # Catches a class called training_set, as some archives are packed.
    paths = [f"{name}/{name}" for name in ("training_set", "test_set")]
    layout = read(images(*(f"{path}/{label}" for path in paths for label in ("cat", "dog"))))
    assert_splits(layout, *paths)


def test_val_is_left_out_beside_a_test_split():
    # Catches validation images that are trained or tested on, or left out without a word.
    layout = read(TRAIN + images("test/cat", "test/dog", "val/cat", "val/wolf"))
    assert_splits(layout, "train", "test")
    assert "left out: val/ (the search splits the training images itself)" in layout.summary


@pytest.mark.parametrize(
    "unlabelled", [images("test"), images("test/images"), images("test/unknown"), ["test/"]]
)
def test_an_unlabelled_test_split_gives_way_to_val(unlabelled):
    # Catches a class called images, and an error although val/ has all that is needed.
    layout = read(TRAIN + unlabelled + images("val/cat", "val/dog"))
    assert_splits(layout, "train", "val")
    assert "left out: test/ (" in layout.summary


@pytest.mark.parametrize("paths", [TRAIN, TRAIN + images("test")])
def test_without_test_labels_a_fifth_of_each_class_is_held_out(paths):
    # Catches test images that nobody has labelled, and a class called train.
    layout = read(paths)
    assert layout.classes == ("cat", "dog")
    for name in layout.classes:
        train, test = of_class(layout, "train", name), of_class(layout, "test", name)
        assert len(test) == 1
        assert sorted(train + test) == images(f"train/{name}")
    assert "2 test images, a fifth of each class" in layout.summary
    assert ("left out: test/ (no folder for each class)" in layout.summary) == (paths != TRAIN)


def tiny_imagenet(lines):
    classes = ("n01443537", "n01629819")
    train = [path for name in classes for path in images(f"train/{name}/images", suffix="JPEG")]
    boxes = [f"train/{name}/{name}_boxes.txt" for name in classes]
    val = [*images("val/images", suffix="JPEG"), "val/val_annotations.txt"]
    paths = [*train, *boxes, *val, *images("test/images", suffix="JPEG"), "wnids.txt", "words.txt"]
    paths = [f"tiny-imagenet-200/{path}" for path in paths]
    return paths, {"tiny-imagenet-200/val/val_annotations.txt": lines}


def test_tiny_imagenet_as_unzipped():
    # Catches labels in the order of the files, and lists of boxes that are taken for images.
    lines = "0.JPEG\tn01629819\t0\t32\t44\t62\n1.JPEG\tn01443537\t1\t2\t3\t4\n2.JPEG\tn01629819\n"
    layout = read(*tiny_imagenet(lines))
    assert layout.classes == ("n01443537", "n01629819")
    root = "tiny-imagenet-200"
    for name in layout.classes:
        path = f"{root}/train/{name}/images"
        assert of_class(layout, "train", name) == images(path, suffix="JPEG")
    assert of_class(layout, "test", "n01443537") == [f"{root}/val/images/1.JPEG"]
    assert of_class(layout, "test", "n01629819") == [f"{root}/val/images/{i}.JPEG" for i in (0, 2)]
    for text in ("val_annotations.txt", "test/ (no folder for each class)", "2 .txt files"):
        assert text in layout.summary


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("0.JPEG\tn01443537\n1.JPEG\tn01629819\n", ["2.JPEG is not in", "add a line"]),
        ("0.JPEG\tn01443537\n\n1.JPEG n01629819\n", ["line 3", "'1.JPEG n01629819'"]),
        ("0.JPEG\tn01443537\n0.JPEG\tn01629819\n", ["line 2", "once"]),
        ("".join(f"{i}.JPEG\tn01443537\n" for i in range(3)), ["only train/ has n01629819"]),
        ("".join(f"{i}.JPEG\tn0144353{i}\n" for i in range(3)), ["n01443530", "only train/"]),
        ("".join(f"{i}.JPEG\tn01443537\n" for i in range(4)), ["names 3.JPEG", "is not there"]),
    ],
)
def test_a_text_file_of_labels_must_name_each_image_once(lines, texts):
    # Catches images that are dropped or get another class without a word.
    message = refused(*tiny_imagenet(lines))
    assert all(text in message for text in texts), message


def test_images_in_folders_of_a_class_belong_to_it():
    # Catches a folder that is read as an image, and images that are passed over.
    layout = read(images("cat/2019/may", "cat/2020", "cat", "dog/x"))
    assert layout.classes == ("cat", "dog")
    cats = of_class(layout, "train", "cat") + of_class(layout, "test", "cat")
    assert sorted(cats) == sorted(images("cat/2019/may", "cat/2020", "cat"))
    assert "images in sub-folders of a class belong to it" in layout.summary


def test_what_systems_leave_behind_is_left_out_and_counted():
    # Catches a class called __MACOSX, and a run that ends at a preview.
    left = ["__MACOSX/cat/._0.png", "cat/Thumbs.db", "dog/Thumbs.db", "dog/desktop.ini"]
    left += ["cat/.DS_Store", "dog/._0.png", "$RECYCLE.BIN/x.png", ".hidden/0.png", "cat/notes.txt"]
    layout = read(images("cat", "dog") + left)
    assert layout.classes == ("cat", "dog")
    assert sorted(sum(layout.files.values(), ())) == images("cat", "dog")
    for text in ("1 __MACOSX", "2 Thumbs.db", "1 desktop.ini", "1 .DS_Store", "1 .txt file"):
        assert text in layout.summary
    assert layout.summary.isprintable()


@pytest.mark.parametrize("suffix", ["png", "JPG", "heic", "dat", "tar.xz"])
def test_what_may_be_an_image_is_read(suffix):
    # Catches images that are left out because their suffix is not known: data.corrupt decides.
    layout = read(images("cat", "dog", suffix=suffix))
    assert len(sum(layout.files.values(), ())) == 6


def test_classes_may_have_the_names_of_splits():
    # Catches vehicles that are taken for a training split.
    layout = read(images("bus", "train", "test"))
    assert layout.classes == ("bus", "test", "train")


@pytest.mark.parametrize("names", [("Cat", "cat"), ("Café", "cafe\u0301")])
def test_classes_that_differ_by_case_or_unicode_form_are_matched(names):
    # Catches a data set that is refused, or has a class twice, after a move between systems.
    train, test = names
    layout = read(images(f"train/{train}", "train/dog", f"test/{test}", "test/dog"))
    name = unicodedata.normalize("NFC", train)
    assert set(layout.classes) == {name, "dog"}
    assert of_class(layout, "train", name) == images(f"train/{train}")
    assert of_class(layout, "test", name) == images(f"test/{test}")


def test_class_names_do_not_depend_on_how_a_system_stores_them():
    # Catches a checkpoint of a Mac whose classes have other names on Linux.
    layout = read(images("train/cafe\u0301", "train/dog", "test/caf\u00e9", "test/dog"))
    assert layout.classes == ("caf\u00e9", "dog")


def test_letters_of_both_cases_stay_apart():
    # Catches a and A that become one class.
    layout = read(images("train/a", "train/A", "test/a", "test/A"))
    assert layout.classes == ("A", "a")
    assert of_class(layout, "test", "a") == images("test/a")


@pytest.mark.parametrize(
    ("paths", "texts"),
    [
        (["cat.0.png", "dog.0.png"], ["my_images has no folders, only 2 files", "each class"]),
        (images("train", "test"), ["no folder for each class in its train/", "train/CLASS/"]),
        (images("Training", "Testing"), ["in its Training/"]),
        (images("test/a", "test/b", "val/a", "val/b"), ["no train/"]),
        (TRAIN + images("val"), ["my_images/val/ cannot be the test split", "val/CLASS/"]),
        (TRAIN + images("Train/cat", "test/cat", "test/dog"), ["Train/ and train/", "keep one"]),
        (TRAIN + images("test/cat", "Testing/cat"), ["Testing/ and test/"]),
        (TRAIN + images("annotations"), ["no test/ or val/", "annotations"]),
        (TRAIN + images("test/cat", "test/wolf"), ["only train/ has dog", "only test/ has wolf"]),
        (TRAIN + images("test/cat", "test/wolf", "val/cat", "val/dog"), ["only test/ has wolf"]),
        (TRAIN + images("test/cat"), ["only train/ has dog:"]),
        (TRAIN + images("test/cat", "test/Cat", "test/dog"), ["only test/ has Cat"]),
        (images("train/\u0430", "train/b", "test/a", "test/b"), ["('\\u0430')", "has a:"]),
        (images("caf\u00e9", "cafe\u0301"), ["'cafe\\u0301' and 'caf\\xe9'", "look alike"]),
        (images("cat/train", "cat/test", "dog/train", "dog/test"), ["above the class"]),
        ([*images("cat", "dog"), "bird/"], ["my_images/bird has no images"]),
        ([*images("cat", "dog"), "bird/Thumbs.db"], ["my_images/bird has no images"]),
        ([*images("cat", "dog"), "bird/0.png"], ["my_images/bird has 1 image"]),
        (images("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/a"), ["train/ and"]),
        (images("train_2/a", "train_2/b", "test/a", "validation_2/b"), ["train_2", "test/"]),
        ([*TRAIN, "a.png"], ["one folder, train/, and a.png beside it"]),
        ([*images("x/train/a", "x/test/a"), "b.png"], ["one folder, x/", "move them away"]),
        (images("my_train", "my_test"), ["do not look like classes"]),
        (images("Images/a", "Images/b", "Annotation/a"), ["Images/ beside Annotation/", "CLASS"]),
        (images("images", "annotations/trimaps"), ["annotations/ away"]),
    ],
)
def test_what_can_be_read_in_several_ways_or_in_none_is_refused(paths, texts):
    # Catches a guess, and a line that does not say which folder to rename.
    message = refused(paths)
    assert all(text in message for text in texts), message


@pytest.mark.parametrize(
    ("paths", "broken"),
    [
        (images("cat", "dog"), "bird"),
        (TRAIN, "test"),
        (TRAIN, "train/bird"),
        (TRAIN + images("val/cat", "val/dog"), "test"),
    ],
)
def test_a_broken_link_in_place_of_a_folder_is_refused(paths, broken):
    # Catches a class or a split that is missing without a word.
    message = refused([*paths, broken], broken=[broken])
    assert f"my_images/{broken} is a broken link" in message


@pytest.mark.parametrize("wrapper", ["", "photos/"])
@pytest.mark.parametrize("test", [[], images("test/cat", "test/dog")])
def test_a_licence_beside_a_folder_is_no_image(wrapper, test):
    # Catches a file without a suffix that hides the folders beside it.
    paths = [wrapper + path for path in TRAIN + test]
    layout = read([*paths, "LICENSE", f"{wrapper}train/cat/README"])
    assert layout.classes == ("cat", "dog")
    assert "1 readme file" in layout.summary


def test_a_name_may_not_stand_for_two_labelled_images():
    # Catches images that are left out, and not counted either.
    paths, texts = tiny_imagenet("".join(f"{i}.JPEG\tn0144353{7}\n" for i in range(3)))
    message = refused([*paths, "tiny-imagenet-200/val/more/0.JPEG"], texts)
    assert "val/images/0.JPEG" in message and "val/more/0.JPEG" in message


def test_a_long_list_of_classes_is_cut_and_kept_in_one_line():
    # Catches a message of a thousand names, and a name that breaks the line.
    layout = read(images(*(f"{i:03}" for i in range(1000)), "a\nb"))
    assert len(layout.summary) < 200 and "\n" not in layout.summary
    assert "1,001 classes (000, 001, 002, 003, ... a\\nb)" in layout.summary
    np.testing.assert_array_equal(np.bincount(layout.labels["test"]), np.ones(1001))
