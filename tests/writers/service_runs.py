"""Runs whose curves go to a service, for the tests of each service."""

import json

import small_run


def write_losses(writers, losses):
    """Writes losses by their steps, each with an accuracy that is not a number."""
    for step, loss in losses.items():
        writers.scalars({"loss": loss, "accuracy": float("nan")}, step)


def search_two_seeds(workdir, service):
    """Searches the seeds 0 and 1 at once, and returns the training losses of each."""
    flags = ["seeds=2", "compute.seeds_at_once=2", f"metrics.writers={service}"]
    command = small_run.command(workdir, *(f"--config.{flag}" for flag in flags), "--phases=search")
    small_run.run(command)
    histories = (workdir / f"seed{seed}" / "search" / "history.jsonl" for seed in (0, 1))
    lines = [history.read_text().splitlines() for history in histories]
    return [[json.loads(line)["train_loss"] for line in each] for each in lines]
