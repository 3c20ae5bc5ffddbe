"""Folds side by side, one per process, and the SLURM scripts: what each process is told, and what it trains."""

import os
import pty
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leukofold import cli
from leukofold.errors import UserError
from leukofold.processes import available_cores, cores_per_process
from leukofold.runs import RunFolder
from leukofold.training.parting import MEETING, part_from_others

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "scripts" / "train_fold.py"
SLURM = [REPOSITORY / "scripts" / name for name in ("folds.slurm", "nodes.slurm")]
CONFIG = """
data: {competition: wbcbench, root: input, render: {images: 75, test_images: 13, patients: 13}, workers: 1}
folds: {count: 3}
image: {size: 32}
model: {backbone: test_resnet, pretrained: false}
training: {epochs: 1, batch_size: 8, ema_decay: 0.5}
inference: {tta: none}
"""


def launched(rank: int, processes: int, here: int | None = None, **others: str) -> dict[str, str]:
    """What torchrun tells one of so many processes, so many of them on its machine (by default all)."""
    here = here or processes
    ranks = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
    return {**{name: str(k) for name, k in ranks.items()}, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", **others}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets torch see so many GPUs, and those of a list of visible ones once a process has chosen one."""

    def fake(count: int) -> None:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")

        def visible() -> int:
            now = os.environ.get("CUDA_VISIBLE_DEVICES")
            return count if not count or now in (None, given) else len(str(now).split(","))

        monkeypatch.setattr(torch.cuda, "device_count", visible)

    return fake


@pytest.mark.parametrize(
    ("visible", "own"),
    [
        (None, ["0", "1", "2", "3"]),
        ("0,1,2,3", ["0", "1", "2", "3"]),
        ("6, 4,2,0", ["6", "4", "2", "0"]),
        ("GPU-5ac1,GPU-77b0,GPU-8e,GPU-91", ["GPU-5ac1", "GPU-77b0", "GPU-8e", "GPU-91"]),
    ],
)
def test_each_process_of_a_machine_gets_a_gpu_of_its_own(
    gpus: Callable[[int], None], visible: str | None, own: list[str]
) -> None:
    gpus(4)
    told = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    for rank in range(8):  # on two machines
        with mock.patch.dict(os.environ, launched(rank, 8, here=4, **told), clear=True):
            assert part_from_others() == (rank, 8)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == own[rank % 4]


def test_on_cpus_processes_share_the_cores(gpus: Callable[[int], None]) -> None:
    gpus(0)
    with mock.patch.dict(os.environ, launched(1, 2, CUDA_VISIBLE_DEVICES=""), clear=True):
        assert part_from_others() == (1, 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert cores_per_process() == max(1, available_cores() // 2)


def test_what_asks_for_a_group_is_taken_away_and_nothing_else(gpus: Callable[[int], None]) -> None:
    gpus(0)
    kept = {"ACCELERATE_MIXED_PRECISION": "bf16", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "HOME": "/home/me"}
    with mock.patch.dict(os.environ, {**dict.fromkeys(MEETING, "1"), **launched(1, 2), **kept}, clear=True):
        part_from_others()
        assert dict(os.environ) == kept  # also no line for bars, as standard error is no terminal here


def test_without_a_launcher_nothing_changes() -> None:
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "0,1", "MASTER_ADDR": "a"}, clear=True):
        assert part_from_others() == (0, 1)
        assert dict(os.environ) == {"CUDA_VISIBLE_DEVICES": "0,1", "MASTER_ADDR": "a"}


def test_a_machine_with_too_few_gpus_is_refused_before_the_processes_part(gpus: Callable[[int], None]) -> None:
    gpus(2)
    before = launched(2, 6, here=3)
    with mock.patch.dict(os.environ, before, clear=True):
        with pytest.raises(UserError, match=r"^--fold-per-process: 3 processes on this machine, but only 2 GPU\(s\)"):
            part_from_others()
        assert dict(os.environ) == before  # by its RANK a process knows whether to speak


def test_bars_of_processes_on_a_terminal_take_a_line_each() -> None:
    code = (
        "import sys; from leukofold.training.parting import part_from_others; part_from_others()\n"
        "from tqdm import tqdm; print([abs(tqdm(total=3, leave=False).pos) for _ in range(2)])"
    )
    ours, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **launched(3, 4)}, stdout=subprocess.PIPE, stderr=terminal,
        text=True, check=True,
    )  # fmt: skip
    os.close(ours)
    os.close(terminal)
    assert done.stdout == "[3, 3]\n"


class Script:
    """scripts/train_fold.py in this process, its training replaced by a note of what was to be trained."""

    def __init__(self) -> None:
        """Loads the script's functions."""
        self.main: Callable[[], None] = runpy.run_path(str(SCRIPT))["main"]
        self.parse: Callable[[], Any] = runpy.run_path(str(SCRIPT))["parse_arguments"]
        self.fault: Exception | None = None
        self.waited: list[float] = []

    def run(self, environment: Mapping[str, str], *arguments: str) -> tuple[list[int] | None, int]:
        """Runs the script; returns the folds that it trains (None: it does not come to that) and its exit code."""
        trained: list[list[int]] = []

        def train_folds(config: object, run: object, folds: list[int], *others: object, **more: object) -> None:
            trained.append(folds)
            if self.fault is not None:
                raise self.fault

        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch("leukofold.training.fold.train_folds", train_folds),
            mock.patch("time.sleep", self.waited.append),
            mock.patch.object(sys, "argv", [str(SCRIPT), *arguments]),
        ):
            try:
                self.main()
            except SystemExit as end:
                return next(iter(trained), None), int(str(end.code))
        return next(iter(trained), None), 0


@pytest.fixture
def script() -> Script:
    """The script."""
    return Script()


@given(count=st.integers(2, 9), processes=st.integers(1, 12), chosen=st.sets(st.integers(0, 8)), data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_processes_together_train_each_fold_once(
    script: Script, count: int, processes: int, chosen: set[int], data: st.DataObject
) -> None:
    some = sorted(k for k in chosen if k < count)
    words = [str(k) for k in data.draw(st.permutations(some))] or ["all"]
    shares = []
    for rank in range(processes):
        arguments = ("--fold", *words, "--fold-per-process", "--set", f"folds.count={count}")
        share, code = script.run(launched(rank, processes), *arguments)
        assert code == 0
        assert share != []  # a process that no fold is left for does not begin to train
        shares.append(share or [])
    assert sorted(fold for share in shares for fold in share) == (some or list(range(count)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_that_no_fold_is_left_for_says_so(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.run(launched(2, 4), "--fold", "0", "1", "--fold-per-process") == (None, 0)
    assert capsys.readouterr().out == "process 2 of 4: no fold is left for it\n"


def test_without_the_option_or_a_launcher_all_folds_are_trained_here(script: Script) -> None:
    assert script.run(launched(1, 2), "--fold", "all") == ([0, 1, 2], 0)
    assert script.run({}, "--fold", "all", "--fold-per-process") == ([0, 1, 2], 0)


def test_a_parted_process_tells_its_own_error_at_once(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.fault = UserError("fold 1: the loss is nan in epoch 1; lower optimizer.lr")
    assert script.run(launched(1, 2), "--fold-per-process") == ([1], 2)
    assert capsys.readouterr().err == "error: fold 1: the loss is nan in epoch 1; lower optimizer.lr\n"
    assert script.waited == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "only 1 GPU(s)"), (("--fold", "7"), "--fold 7"), (("--run", "../a"), "--run ../a")],
    ids=["too few GPUs", "no such fold", "no such run"],
)
def test_a_mistake_that_all_processes_meet_is_left_to_the_first_one(
    script: Script,
    gpus: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    gpus(1)
    for rank in (0, 1):
        assert script.run(launched(rank, 2), "--fold-per-process", *arguments) == (None, 2)
        assert message in capsys.readouterr().err
        assert script.waited == [cli.OTHERS_WAIT] * rank  # in which the launcher ends it


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """The same folds, one after the other in this process, and side by side in two."""
    folder = tmp_path_factory.mktemp("launching")
    (folder / "tiny.yaml").write_text(CONFIG)
    arguments = [str(SCRIPT), "--config", "tiny.yaml", "--fold", "all", "--fold-per-process", "--run-name"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LOCAL_WORLD_SIZE", "2")  # as many threads as one of two processes has: other numbers, other bits
        patch.setattr(sys, "argv", [*arguments, "alone"])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    told = {"PMI_SIZE": "2", "PMI_RANK": "0", "ACCELERATE_USE_FSDP": "true"}  # either would make the processes join
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments, "beside"],
        cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(", 1 process(es) on cpu") == 2
    return {name: RunFolder(name, folder / "oof") for name in ("alone", "beside")}


def test_folds_side_by_side_have_the_bits_of_folds_one_after_the_other(runs: dict[str, RunFolder]) -> None:
    alone, beside = runs["alone"], runs["beside"]
    assert alone.complete_folds() == beside.complete_folds() == [0, 1, 2]
    assert alone.folds_csv.read_bytes() == beside.folds_csv.read_bytes()
    for k in range(3):
        for file in ("oof.npz", "test.npz", "best.safetensors"):
            assert (beside.fold(k).path / file).read_bytes() == (alone.fold(k).path / file).read_bytes()
        assert alone.fold(k).metadata() | {"run": "beside"} == beside.fold(k).metadata()
        assert beside.fold(k).metadata()["processes"] == 1


@pytest.mark.parametrize("path", SLURM, ids=lambda path: str(path.name))
def test_slurm_scripts_parse_and_end_outside_of_the_project(path: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert max(map(len, lines)) <= 120
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} < set(options)
    assert not [line for line in options if any(word in line for word in ("partition", "account", "qos"))]
    done = slurm(path, [], {"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (
        2, f"error: {tmp_path} is not the project's folder; call sbatch there\n",
    )  # fmt: skip


def slurm(path: Path, arguments: list[str], told: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a SLURM script in bash, without variables of a SLURM that may be around."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SRUN"))}
    return subprocess.run(
        ["bash", str(path), *arguments], env={**environment, **told}, capture_output=True, text=True, check=False
    )


def programs(folder: Path, **bodies: str) -> Mapping[str, str]:
    """Puts shell programs before all others on the path, and tells a job's place and cores."""
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_CPUS_PER_TASK": "6",
    }


def check_launch(words: list[str], given: list[str]) -> Any:
    """Reads a launcher's command with accelerate's own parser, and what follows with the script's."""
    assert words[:2] == ["accelerate", "launch"]
    launch = launch_command_parser().parse_args(words[2:])
    assert launch.training_script == "scripts/train_fold.py"
    assert launch.training_script_args[: len(given)] == given
    with mock.patch.object(sys, "argv", [launch.training_script, *launch.training_script_args]):
        launch.train_fold = Script().parse()
    assert launch.train_fold.resume
    assert launch.train_fold.config == [Path("my configs/a.yaml")]
    assert launch.train_fold.overrides == ["training.epochs=3"]
    return launch


ARGUMENTS = ["--config", "my configs/a.yaml", "--set", "training.epochs=3"]


@pytest.mark.parametrize(
    ("told", "nodes", "gpus_per_node", "port"),
    [
        ({}, 2, 4, 20000),
        ({"SLURM_NNODES": "3", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "1234567"}, 3, 8, 24567),
    ],
    ids=["defaults", "as SLURM says"],
)
def test_a_dry_run_prints_what_each_node_would_run(
    told: dict[str, str], nodes: int, gpus_per_node: int, port: int
) -> None:
    given = [*ARGUMENTS, "--fold", "0", "2"]
    done = slurm(REPOSITORY / "scripts" / "nodes.slurm", given, {**told, "DRY_RUN": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    launches = [check_launch(shlex.split(line), given) for line in done.stdout.splitlines()]
    assert [launch.machine_rank for launch in launches] == list(range(nodes))
    for launch in launches:
        assert launch.multi_gpu
        assert (launch.num_machines, launch.num_processes) == (nodes, nodes * gpus_per_node)
        assert (launch.main_process_ip, launch.main_process_port) == ("node0", port)
        assert launch.train_fold.fold == ["0", "2"]


def test_every_node_runs_what_the_dry_run_prints(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    told = {
        **programs(
            tmp_path,
            scontrol='[[ "$*" == "show hostnames cell[07-08]" ]] && printf "%s\\n" cell07 cell08',
            accelerate=f'printf "%q " accelerate "$@" >> {calls}; echo >> {calls}',
            srun='while [[ $1 == --* ]]; do echo "$1"; shift; done\n'
            'for node in 0 1; do SLURM_NODEID=$node "$@"; done',
        ),
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "cell[07-08]",
    }  # fmt: skip
    done, dry = (
        slurm(REPOSITORY / "scripts" / "nodes.slurm", ARGUMENTS, {**told, **more}) for more in ({}, {"DRY_RUN": "1"})
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=6", "--kill-on-bad-exit=1",
    ]  # fmt: skip
    assert calls.read_text() == dry.stdout
    launches = [check_launch(shlex.split(line), ARGUMENTS) for line in dry.stdout.splitlines()]
    assert [launch.machine_rank for launch in launches] == [0, 1]
    assert {(launch.main_process_ip, launch.num_processes) for launch in launches} == {("cell07", 4)}


def test_a_task_of_the_array_trains_the_fold_of_its_number(tmp_path: Path) -> None:
    told = programs(tmp_path, accelerate='printf "%q " accelerate "$@"')
    done = slurm(REPOSITORY / "scripts" / "folds.slurm", ARGUMENTS, {**told, "SLURM_ARRAY_TASK_ID": "3"})
    assert (done.returncode, done.stderr) == (0, "")
    launch = check_launch(shlex.split(done.stdout), ARGUMENTS)
    assert (launch.num_machines, launch.num_processes, launch.multi_gpu) == (1, 1, False)
    assert launch.train_fold.fold == ["3"]


@pytest.mark.parametrize("word", ["--fold", "--fold=all"])
def test_folds_of_an_array_are_chosen_by_the_array(word: str, tmp_path: Path) -> None:
    done = slurm(REPOSITORY / "scripts" / "folds.slurm", [word, "0"], programs(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    message = f"error: {word}: each task trains the fold of its number; choose folds by sbatch --array=0-4\n"
    assert done.stderr == message
