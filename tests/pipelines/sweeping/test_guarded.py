"""A stage on a Ray worker sees the threads that `dvc repro` would give it, and nothing of Ray's."""

from pathlib import Path

from pipelines.sweeping.guarded import Guard, deciding

ROOT = Path("/project")
WORKER = {
    "PATH": "/worker/bin",
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_NUM_THREADS": "1",  # Ray's own doing
    "MKL_NUM_THREADS": "7",
    "RAY_AUTH_TOKEN": "secret",
    "TUNE_ORIG_WORKING_DIR": "/x",
    "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace",
}


def test_what_dvc_is_to_record_nothing_of_is_no_stage_of_its():
    found = Guard(ROOT, {}).variables(WORKER)
    assert "DVC_STAGE" not in found and found["DVC_ROOT"] == "/project"


def of(runner):
    return Guard(ROOT, deciding(runner)).variables(WORKER, stage="teacher@a")


def test_threads_are_the_runners():
    assert of({"OMP_NUM_THREADS": "4", "HOME": "/h"})["OMP_NUM_THREADS"] == "4"
    assert "HOME" not in of({"HOME": "/h"})


def test_threads_are_unset_where_the_runners_are():
    found = of({})
    assert not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(found)


def test_paths_and_the_gpu_are_the_workers_and_ray_is_left_out():
    assert of({}) == {
        "PATH": "/worker/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "DVC_STAGE": "teacher@a",
        "DVC_ROOT": "/project",
        "PYTHONUNBUFFERED": "1",
    }
