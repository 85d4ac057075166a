"""Curves for Weights & Biases (https://wandb.ai), each phase of a run as a run there.

Nothing is sent unless the user has logged in (`wandb login`, WANDB_API_KEY) or has set WANDB_MODE:
otherwise the run is offline and stays in the workdir, from where `wandb sync` uploads it. The
project is WANDB_PROJECT, by default `drnas_jax`; the entity is WANDB_ENTITY.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drnas_jax.config import to_dict
from drnas_jax.extras import import_extra
from drnas_jax.files import read_json, write_json
from drnas_jax.writers.base import RunInfo, Writer, service_errors

_LONGEST = 128  # characters of a name or group that the service takes
_START = 90.0  # seconds that the service may take to answer
_FINISH = 60.0  # seconds for uploads at the end of a phase; the rest stays in the workdir


def check() -> None:
    """Raises UserError if the package wandb is missing."""
    _wandb()


def create(run: RunInfo) -> Writer:
    """Returns a writer to the service's run of this phase, which is begun or continued."""
    return WeightsAndBiases(run)


class WeightsAndBiases:
    """A run at Weights & Biases.

    The number of the run and the last step are kept in `wandb.json` in the phase's directory. A
    phase that is resumed continues the same run, and does not log a step again: the service takes
    only steps that increase. Each start of an offline run has its own folder in `wandb/`.

    Args:
      run: Phase whose curves are written.
    """

    def __init__(self, run: RunInfo):
        self._file: Path = run.directory / "wandb.json"
        self._kept: dict[str, Any] = {"id": uuid.uuid4().hex[:16], "step": -1}
        self._kept |= read_json(self._file) or {}
        run.directory.mkdir(parents=True, exist_ok=True)
        with service_errors():
            self._run = _init(run, self._kept["id"])
            where = f"offline, in {self._run.sync_dir}" if self._run.offline else self._run.url
        write_json(self._file, self._kept)
        run.say(f"Weights & Biases: {where or 'disabled'}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve, unless an earlier start has written this step."""
        if step <= self._kept["step"]:
            return
        with service_errors():
            self._run.log(dict(values), step=step)
        self._kept["step"] = step
        write_json(self._file, self._kept)

    def close(self) -> None:
        """Uploads what is left, for a minute at most; `wandb sync` uploads the rest."""
        with service_errors():
            self._run.finish()


def _init(run: RunInfo, number: str) -> Any:
    """Begins a run of the service, or continues the one with this number."""
    wandb = _wandb()
    # Without this a terminal would be asked for an account, and a job would fail.
    offline = not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False)
    return wandb.init(
        mode="offline" if offline else None,
        project=None if os.environ.get("WANDB_PROJECT") else "drnas_jax",
        group=run.group[-_LONGEST:],
        job_type=run.phase,
        name=run.name[-_LONGEST:],
        id=number,
        resume="allow",
        reinit="create_new",  # several seeds have runs at the same time
        dir=run.directory,
        config=to_dict(run.config),
        settings=wandb.Settings(
            console="off",  # the lines of this package are not uploaded
            silent=True,
            init_timeout=_START,
            finish_timeout=_FINISH,
            finish_timeout_raises=True,
        ),
    )


def _wandb() -> Any:
    return import_extra("wandb", "wandb", "metrics.writers 'wandb'")
