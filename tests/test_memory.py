"""The memory of a training: what is counted as what, and the simulation at full size."""

import mmap
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from leukofold.benchmarks.measuring import Report
from leukofold.benchmarks.memory import SMAPS, TARGET, Memory, measure_memory, memory, sampled, simulate_training

needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell its processes' memory in parts")

MIB = 2**20
PLAY = 8 * MIB  # what the interpreter may take or give back in between


@needs_smaps
def test_training_on_55_000_images_stays_within_its_memory(tmp_path: Path) -> None:
    found = simulate_training(tmp_path, 55_000, workers=2, steps=20)
    assert found.file_bytes == pytest.approx(55_000 * 224 * 224 * 3, abs=4096)
    assert found.disk_bytes < MIB  # sparse: the header alone
    assert found.peak.taken < TARGET == 4e9
    assert found.peak.taken == max(found.training.taken, found.validation.taken)
    assert found.before.taken < found.data.taken < found.peak.taken
    assert found.before.processes == found.data.processes == 1
    assert found.training.processes == 1 + 2
    assert found.validation.processes == 1 + 2 + 2  # the training's loaders wait for the next epoch
    assert 0 < found.training.shared <= 2 * 4 * 32 * 224 * 224 * 3 * 1.5
    assert found.travelling_bytes == 2 * 4 * 64 * 224 * 224 * 3  # scoring's batches are the larger ones


def in_its_own_process(measure: Callable[[Path], list[Memory]], folder: Path) -> list[Memory]:
    """What a fresh process measures: in the tests' own, others allocate and free beside."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder).result()


def touched(size: int) -> np.ndarray:
    """Memory that the process did not have before: an array's may have been freed by another."""
    array = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    array[:] = 1
    return array


def take_each_kind(folder: Path) -> list[Memory]:
    np.save(folder / "numbers.npy", np.ones(32 * MIB, dtype=np.uint8))
    found = [measure_memory()]
    mapped = np.load(folder / "numbers.npy", mmap_mode="r")
    assert mapped.sum() == 32 * MIB
    found.append(measure_memory())
    private = touched(48 * MIB)
    found.append(measure_memory())
    shared = torch.ones(64 * MIB, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    found.append(measure_memory())
    assert private.nbytes == 48 * MIB
    assert shared.nbytes == 64 * MIB
    return found


@needs_smaps
def test_private_and_shared_memory_and_mapped_files_are_told_apart(tmp_path: Path) -> None:
    before, after_file, after_private, after_shared = in_its_own_process(take_each_kind, tmp_path)
    assert after_file.page_cache - before.page_cache == pytest.approx(32 * MIB, abs=PLAY)
    assert after_file.taken == pytest.approx(before.taken, abs=PLAY)
    assert after_private.private - after_file.private == pytest.approx(48 * MIB, abs=PLAY)
    assert after_shared.shared - after_private.shared == pytest.approx(64 * MIB, abs=PLAY)
    assert after_shared.private == pytest.approx(after_private.private, abs=PLAY)


def pass_a_peak(_: Path) -> list[Memory]:
    before = measure_memory()
    with sampled() as samples:
        passing = touched(96 * MIB)
        count = len(samples.seen)
        while len(samples.seen) < count + 2:
            passing[:1] = 1
        del passing
    return [before, samples.peak, measure_memory()]


@needs_smaps
def test_a_peak_is_seen_that_is_over_at_the_end(tmp_path: Path) -> None:
    before, peak, after = in_its_own_process(pass_a_peak, tmp_path)
    assert peak.taken - before.taken == pytest.approx(96 * MIB, abs=2 * PLAY)
    assert after.taken - before.taken == pytest.approx(0, abs=2 * PLAY)


def test_where_the_system_does_not_tell_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("leukofold.benchmarks.memory.SMAPS", tmp_path / "none")
    report = Report("memory", "")
    memory(report, 1000)
    assert {result["name"] for result in report.results} == {"host memory"}
    assert "not measured: no " in capsys.readouterr().out
