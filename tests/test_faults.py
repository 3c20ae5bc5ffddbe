"""What a training does when the machine fails it: each fault ends in one line, and can be gone on from."""

import ctypes
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from leukofold.runs import RunFolder
from tests.trainings import Started, pause_after_the_first_epoch, start, train

CONFIG = """
data: {{competition: wbcbench, root: "{root}", workers: 1}}
folds: {{count: 2}}
image: {{size: 32}}
model: {{backbone: test_resnet, pretrained: false}}
training: {{epochs: 2, batch_size: 16}}
inference: {{tta: none}}
"""
ARGUMENTS = ("--config", "tiny.yaml", "--fold", "0")
ONE_EPOCH = ("--set", "training.epochs=1")
ON = "the same command with --resume goes on from the last whole epoch"


@pytest.fixture(scope="module")
def undisturbed(rendered_wbcbench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of fold 0 when nothing fails, on one process and on two."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(CONFIG.format(root=rendered_wbcbench))
    for processes in (1, 2):
        train(folder, *ARGUMENTS, "--run", f"on{processes}", processes=processes)
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A working folder with a configuration, and a cache of its own."""
    shutil.copy(undisturbed / "tiny.yaml", tmp_path)
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    return tmp_path


def need_results(folder: Path, undisturbed: Path, processes: int = 1) -> None:
    """Holds a fold's results against those of the undisturbed training."""
    for name in ("oof.npz", "test.npz", "best.safetensors"):
        expected = (undisturbed / "oof" / f"on{processes}" / "fold0" / name).read_bytes()
        assert (folder / "oof" / "tiny" / "fold0" / name).read_bytes() == expected


def start_and_pause(folder: Path, *arguments: str, processes: int = 1) -> list[Started]:
    """Starts a training whose first process has stopped, by itself, after its first epoch."""
    started = start(folder, *arguments, processes=processes, before=pause_after_the_first_epoch)
    started[0].wait_for("epoch   1/2")
    return started


def last_line(one: Started) -> str:
    """The last line that a process printed."""
    return one.printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_an_interruption_ends_in_one_line_and_is_gone_on_from(
    folder: Path, undisturbed: Path, number: int, code: int, told: str
) -> None:
    (one,) = start_and_pause(folder, *ARGUMENTS)
    one.kill(number)  # also its loaders, as Ctrl-C does
    one.go_on()
    assert one.end() == code
    assert last_line(one) == f"{told}; {ON}"
    assert "Traceback" not in one.printed
    assert not [name for name in one.left.read_text().splitlines() if name.endswith(".tmp")]
    (again,) = train(folder, *ARGUMENTS, "--resume")
    assert "fold 0: resumed after epoch 1" in again.printed
    need_results(folder, undisturbed)


@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_dies_and_the_other_says_so(folder: Path, undisturbed: Path, victim: int) -> None:
    both = start_and_pause(folder, *ARGUMENTS, processes=2)
    both[victim].kill()
    both[0].go_on()
    other = both[1 - victim]
    assert (both[victim].end(), other.end()) == (-9, 2)
    assert last_line(other).startswith("error: another process of this command has ended: what it said last tells why")
    assert last_line(other).endswith(ON)
    train(folder, *ARGUMENTS, "--resume", processes=2)
    need_results(folder, undisturbed, processes=2)


def test_a_fold_that_is_being_trained_is_not_trained_by_another_command(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = start_and_pause(folder, *ARGUMENTS)
    (second,) = start(folder, *ARGUMENTS, "--resume")
    try:
        assert second.end() == 2
    finally:
        first.go_on()
    assert last_line(second) == (
        "error: oof/tiny/fold0: another process is training this fold and holds .fold0.lock; wait for its end, or name "
        "another run with --run NAME"
    )
    assert first.end() == 0
    need_results(folder, undisturbed)


def test_a_loaders_process_that_the_system_kills_is_told(folder: Path, undisturbed: Path) -> None:
    (one,) = start_and_pause(folder, *ARGUMENTS)
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children")
    if not children.exists():
        pytest.skip("the system does not tell a process's children")
    for child in children.read_text().split():
        with suppress(ProcessLookupError):  # one that has just ended
            os.kill(int(child), signal.SIGKILL)
    one.go_on()
    assert one.end() == 2
    loader = "the system has ended a process that loads images, for want of memory perhaps: lower data.workers"
    assert last_line(one) == f"error: {loader}; {ON}"
    train(folder, *ARGUMENTS, "--resume")
    need_results(folder, undisturbed)


def give_up_rights() -> None:
    """Makes this process keep to files' permissions, be it root's."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    no_capabilities = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), no_capabilities) == 0


def test_a_folder_that_may_not_be_written_to_is_named(folder: Path) -> None:
    (folder / "oof").mkdir(mode=0o555)
    try:
        (one,) = start(folder, *ARGUMENTS, *ONE_EPOCH, before=give_up_rights)
        assert one.end() == 2
    finally:
        (folder / "oof").chmod(0o755)
    advice = "free some space or check the folder's rights, then run again"
    assert last_line(one) == f"error: Permission denied: oof/tiny; {advice}"
    assert list((folder / "oof").iterdir()) == []


def mount_small_disk() -> None:
    """Puts a disk of 700 KB in the place of the results' folder, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.mkdir("oof")
    mounted = libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x44000, None) == 0
    mounted = mounted and libc.mount(b"tmpfs", b"oof", b"tmpfs", 0, b"size=700k") == 0
    print("mounted" if mounted else "not allowed to mount", flush=True)


def test_a_full_disk_is_told_and_leaves_no_half_file(folder: Path) -> None:
    (one,) = start(folder, *ARGUMENTS, *ONE_EPOCH, before=mount_small_disk)
    code = one.end()
    if "not allowed to mount" in one.printed:
        pytest.skip("only root may mount a disk; test_train_fold_cli.py limits the size of files instead")
    assert code == 2
    assert "Traceback" not in one.printed
    assert last_line(one) == (
        "error: No space left on device: oof/tiny/fold0/best.safetensors; free some space or check the folder's "
        "rights, then run again"
    )
    left = one.left.read_text().splitlines()
    assert left == [
        f"oof/tiny/{name}"
        for name in (".fold0.lock", ".run.lock", "fold0/history.csv", "fold0/metadata.json", "folds.csv")
    ]


def flip(path: Path, place: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    """Takes the second half of a file away."""
    os.truncate(path, path.stat().st_size // 2)


def the_cache(folder: Path) -> Path:
    """The folder of the one image cache."""
    (found,) = (path for path in (folder / "cache" / "images").iterdir() if path.is_dir())
    return found


def test_a_byte_that_flips_in_the_image_cache_is_refused_by_the_images_name(folder: Path, undisturbed: Path) -> None:
    cache = the_cache(folder)
    ids = (cache / "index.csv").read_text().split()[1:]
    size = 32 * 32 * 3
    rows = np.load(cache / "pixels.npy", mmap_mode="r").offset
    split = RunFolder("on1", undisturbed / "oof").split().set_index("image_id").fold
    row = next(row for row, image_id in enumerate(ids) if split.get(image_id) == 1)  # trained on
    flip(cache / "pixels.npy", rows + row * size + 100)
    (one,) = start(folder, *ARGUMENTS)
    assert one.end() == 2
    where = f"cache/images/{cache.name}"
    assert last_line(one) == (
        f"error: {where}/pixels.npy: damaged in the row of {ids[row]}; delete {where}, which will be made again, and "
        "look after the disk"
    )
    shutil.rmtree(cache)
    train(folder, *ARGUMENTS, "--resume")
    need_results(folder, undisturbed)


def test_a_cache_that_is_cut_short_is_made_again(folder: Path, undisturbed: Path) -> None:
    cut(the_cache(folder) / "pixels.npy")
    (one,) = train(folder, *ARGUMENTS)
    assert f"cache/images/{the_cache(folder).name}: pixels.npy is cut short; it is made again" in one.printed
    need_results(folder, undisturbed)


@pytest.mark.parametrize("damage", [cut, lambda path: flip(path, path.stat().st_size // 2)], ids=["cut", "flipped"])
def test_a_damaged_state_is_refused_by_name_and_the_fold_trained_afresh_without_it(
    folder: Path, undisturbed: Path, damage: Callable[[Path], None]
) -> None:
    (one,) = start_and_pause(folder, *ARGUMENTS)
    one.kill()
    one.end()
    state = folder / "oof" / "tiny" / "fold0" / "last" / "state.pt"
    damage(state)
    (again,) = start(folder, *ARGUMENTS, "--resume")
    assert again.end() == 2
    assert last_line(again).startswith("error: oof/tiny/fold0/last/state.pt: damaged (")
    assert last_line(again).endswith("; delete it, and --resume trains that fold from its beginning")
    state.unlink()
    train(folder, *ARGUMENTS, "--resume")
    need_results(folder, undisturbed)


def test_a_split_that_was_changed_between_two_folds_is_refused(folder: Path) -> None:
    train(folder, *ARGUMENTS, *ONE_EPOCH, "--set", "folds.by=image")  # where no group would tell
    run = RunFolder("tiny", folder / "oof")
    rows = run.folds_csv.read_text().splitlines()
    place = next(k for k, row in enumerate(rows) if row.endswith(",0"))
    rows[place] = rows[place][:-1] + "1"
    run.folds_csv.write_text("\n".join([*rows, ""]))
    arguments = ("--config", "tiny.yaml", "--fold", "1", "--resume", *ONE_EPOCH, "--set", "folds.by=image")
    (one,) = start(folder, *arguments)
    assert one.end() == 2
    assert (
        "oof/tiny/fold0: the run was trained with another split of the images (folds.csv, split_digest)"
        in last_line(one)
    )


@pytest.mark.parametrize(
    ("older", "moment"),
    [
        ("training.seed=7", "before the fold is begun"),
        ("data.workers=0", "after an epoch"),
    ],  # another, the same
)
def test_a_run_over_an_older_one_is_resumed_wherever_it_was_killed(
    folder: Path, undisturbed: Path, older: str, moment: str
) -> None:
    train(folder, "--config", "tiny.yaml", *ONE_EPOCH, "--set", older)
    arguments = ("--config", "tiny.yaml", "--fold", "all", *(ONE_EPOCH if "workers" in older else ()))
    if moment == "after an epoch":
        one = start(folder, *arguments, before=pause_after_the_first_epoch)[0]
        one.wait_for("epoch   1/")
    else:
        (one,) = start(folder, *arguments, before=pause_before_a_network_is_built)
        one.wait_for("labelled images of")
    one.kill()
    assert one.end() == -9
    (again,) = train(folder, *arguments, "--resume")
    assert again.printed.count("out-of-fold") == 2  # the older fold 1 was not taken for the new one
    run = RunFolder("tiny", folder / "oof")
    assert run.complete_folds() == [0, 1]
    assert run.to_be_replaced() == set()
    if "seed" in older:
        need_results(folder, undisturbed)


def pause_before_a_network_is_built() -> None:
    """Stops this process when it would build a network."""
    from leukofold.training import fold

    fold._make_trainer = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]


def test_a_mistake_leaves_an_older_run_what_it_was(folder: Path) -> None:
    train(folder, *ARGUMENTS, *ONE_EPOCH)
    before = {path: path.read_bytes() for path in (folder / "oof").rglob("*") if path.is_file()}
    (one,) = start(folder, *ARGUMENTS, *ONE_EPOCH, "--set", "model.backbone=resnet5")
    assert one.end() == 2
    assert {path: path.read_bytes() for path in (folder / "oof").rglob("*") if path.is_file()} == before
    (again,) = train(folder, *ARGUMENTS, *ONE_EPOCH, "--resume")
    assert "fold 0: complete already, skipped" in again.printed


def test_what_a_killed_process_left_beside_the_split_is_removed(folder: Path) -> None:
    left = folder / "oof" / "tiny" / ".folds.csv.0123456789ab.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    train(folder, *ARGUMENTS, *ONE_EPOCH)
    assert not left.exists()
