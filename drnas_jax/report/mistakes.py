"""The section about the classes that a network confuses, with pictures."""

import numpy as np

from drnas_jax.phases.confusions import Evaluation
from drnas_jax.report import figures
from drnas_jax.report.markup import (
    card,
    cards,
    heading,
    percent,
    picture,
    plot,
    section,
    table,
    text,
)

_MATRIX = 30  # classes at most of a matrix that can be read
_CLASSES, _PAIRS = 15, 8  # rows at most of the list of classes, and confusions


def mistakes(evaluation: Evaluation | None) -> str:
    """Returns the section about an evaluation; empty if there is none."""
    if evaluation is None or not evaluation.images:
        return ""
    wrong = evaluation.images - int(np.trace(evaluation.confusion))
    words = f"{wrong:,} of {evaluation.images:,} test images are classified wrongly."
    parts = [text(words), _largest(evaluation)]
    if len(evaluation.classes) <= _MATRIX:
        note = "Share of the images of each true class (row) that are taken for each class, in %."
        matrix = figures.confusion_matrix(evaluation.confusion, evaluation.classes)
        parts += [heading("All classes"), text(note), plot(matrix)]
    return section("Errors", *parts, _classes(evaluation))


def _largest(evaluation: Evaluation) -> str:
    classes, boxes = evaluation.classes, []
    for label, predicted, count in evaluation.largest(_PAIRS):
        shown = np.flatnonzero((evaluation.label == label) & (evaluation.predicted == predicted))
        name = f"{classes[label]} taken for {classes[predicted]}"
        pictures = (
            picture(evaluation.picture[i], name, f"{100 * evaluation.confidence[i]:.0f} % sure")
            for i in shown
        )
        boxes.append(card(f"{name}: {count:,} image{'s' if count > 1 else ''}", *pictures))
    if not boxes:
        return ""
    note = "Each with the images of which the network is most sure."
    return heading("Largest confusions") + text(note) + cards(boxes)


def _classes(evaluation: Evaluation) -> str:
    """Returns the accuracy of each class, the least accurate first."""
    accuracy, images = evaluation.class_accuracy, evaluation.confusion.sum(axis=1)
    order = [i for i in np.argsort(accuracy, kind="stable") if images[i]]
    off = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    rows = []
    for i in order[:_CLASSES]:
        other = int(off[i].argmax())
        often = f"{evaluation.classes[other]} ({off[i, other]:,})" if off[i, other] else "no error"
        rows.append((evaluation.classes[i], f"{images[i]:,}", percent(accuracy[i]), often))
    title = "Accuracy of each class"
    if len(order) > _CLASSES:
        title = f"The {_CLASSES} least accurate of {len(order):,} classes"
    header = ("class", "images", "accuracy", "most often taken for")
    return heading(title) + table(header, rows)
