"""What a trial asks for by default, and what is refused before it waits forever."""

import pytest

from kdci.errors import UserError
from pipelines.sweeping.resources import Resources, choose_resources, complaints

SMALL, LARGE = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}


def choose(params, *nodes, cpus=None, gpus=None):
    return choose_resources(params, nodes, cpus=cpus, gpus=gpus)


@pytest.mark.parametrize(
    ("device", "threads", "nodes", "wanted"),
    [
        ("cpu", 3, [SMALL, LARGE], Resources(3, 0)),
        ("cpu", "auto", [SMALL, LARGE], Resources(4, 0)),
        ("auto", 2, [SMALL], Resources(2, 0)),
        ("auto", 2, [SMALL, LARGE], Resources(2, 1)),
        ("cuda", 1, [LARGE], Resources(1, 1)),
    ],
)
def test_defaults_follow_the_params_and_the_nodes(fresh, device, threads, nodes, wanted):
    params = fresh.edit(runtime__device=device, runtime__threads=threads).params
    assert choose(params, *nodes) == wanted


def test_shares_of_a_gpu_cap_its_memory(fresh):
    assert choose(fresh.params, LARGE, gpus=0.25).gpu_share == 0.25
    assert [choose(fresh.params, LARGE, gpus=number).gpu_share for number in (0, 1, 2)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"cpus": 0}, "--cpus-per-trial"),
        ({"gpus": -1}, "--gpus-per-trial"),
        ({"gpus": 1.5}, "--gpus-per-trial"),
        ({"cpus": 17}, "more than any node has"),
        ({"gpus": 3}, "more than any node has"),
    ],
)
def test_what_no_node_can_give_is_refused(fresh, asked, word):
    with pytest.raises(UserError, match=word):
        choose(fresh.params, SMALL, LARGE, **asked)


def test_cpus_and_gpus_must_be_on_one_node(fresh):
    with pytest.raises(UserError, match="more than any node has"):
        choose(fresh.params, SMALL, {"CPU": 1.0, "GPU": 1.0}, cpus=2, gpus=1)


def test_oversubscription_is_told(fresh):
    four = fresh.edit(runtime__threads=4, runtime__device="cpu").params
    assert "4 threads" in complaints(four, [LARGE], Resources(1, 0))[0]
    assert complaints(four, [LARGE], Resources(4, 0)) == []
    auto = fresh.edit(runtime__threads="auto").params
    assert "all of its cores" in complaints(auto, [LARGE], Resources(1, 0))[0]
    assert complaints(auto, [LARGE], Resources(16, 0)) == []
    assert "depend on the node" in complaints(auto, [SMALL, LARGE], Resources(4, 0))[0]


def test_a_gpu_asked_for_by_the_params_alone_is_told(fresh):
    cuda = fresh.edit(runtime__device="cuda").params
    assert "--gpus-per-trial" in complaints(cuda, [SMALL], Resources(1, 0))[0]
    assert complaints(cuda, [LARGE], Resources(1, 0.5)) == []
