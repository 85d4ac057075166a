"""The progress of a phase, which its checkpoints store."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from drnas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a phase, and the devices and data that it runs on.

    Attributes:
      epochs_done: Number of finished epochs.
      seconds: Running time of the phase in seconds, compilation and earlier, killed runs included.
      devices: Number of devices.
      jax: Version of JAX.
      images: Number of training images.
      fingerprint: Number that differs between data sets with different examples.
      steps: Number of steps in an epoch.
      remat: Value of `compute.remat`; '' in checkpoints that were written without it.
    """

    epochs_done: int
    seconds: float
    devices: int
    jax: str
    images: int
    fingerprint: int
    steps: int
    remat: str = ""

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Progress":
        """Converts back what `to_json` returned."""
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Status:
    """The progress of a phase at the end of an epoch, for the page of a run that is going on.

    Attributes:
      phase: Name of the phase shown to the user, for example `search, stage 1/2`.
      epoch: Number of finished epochs.
      epochs: Number of epochs of the phase.
      seconds: Running time of the phase in seconds, see `Progress`.
      epoch_seconds: Duration of the last epoch in seconds, without compilation.
    """

    phase: str
    epoch: int
    epochs: int
    seconds: float
    epoch_seconds: float

    @property
    def seconds_left(self) -> float:
        """Time until the end of the phase in seconds, if all epochs take as long as the last."""
        return (self.epochs - self.epoch) * self.epoch_seconds


def check_resume(before: Progress, now: Progress, phase: str) -> list[str]:
    """Checks that a phase can be resumed, and lists what changed but does not forbid it.

    Args:
      before: Progress from the checkpoint.
      now: Progress of the resumed run.
      phase: Name of the phase, for the messages.

    Returns:
      Messages for the user, one for each change that may alter the result.

    Raises:
      UserError: If the training images are not those that the phase was started with.
    """
    if (before.images, before.steps) != (now.images, now.steps):
        raise UserError(
            f"{phase} was started with {before.images} training images and {before.steps} steps "
            f"per epoch, but the data set now has {now.images} and {now.steps}: restore the "
            "original images, or start in a new workdir"
        )
    if before.fingerprint != now.fingerprint:
        raise UserError(
            f"{phase} was started with other images, in the same number: files were renamed or "
            "exchanged, or data.dir has changed; restore the original images, or start in a new "
            "workdir"
        )
    messages = []
    if before.devices != now.devices:
        messages.append(
            f"{phase} was started on {before.devices} devices and continues on {now.devices}: the "
            "result may differ by rounding, and by more if batch statistics or samples are per "
            "device"
        )
    if before.jax != now.jax:
        messages.append(
            f"{phase} was started with jax {before.jax} and continues with {now.jax}: the result "
            "may differ by rounding"
        )
    if before.remat not in ("", now.remat):
        messages.append(
            f"{phase} was started with compute.remat '{before.remat}' and continues with "
            f"'{now.remat}': the result may differ by rounding"
        )
    return messages
