"""The adapter for DeepSpeed on a stand-in for it, and what is said where DeepSpeed is not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import smart_zero
import torch
from shorthaul import experiments
from shorthaul.errors import EnvironmentLack, Fault, UserError
from smart_testing import differing_bits, gradients, tensors

from smart_infinity import deepspeed, deepspeed_environment
from smart_infinity.deepspeed import SubgroupOptimizer
from smart_infinity.errors import NotFinite
from smart_infinity.experiments import deepspeed_duel, deepspeed_resume

SIZES = (5000, 1023, 8, 2500)
OPTIONS = {"lr": 1e-3, "weight_decay": 0.01}


class Job:
    """An adapter on a stand-in, with two parameter groups; the second has its own rate."""

    def __init__(self, folder: Path, *, attach: bool = True, dtype: Any = torch.float32,
                 **options: Any) -> None:  # fmt: skip
        self.params = tensors(SIZES)
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 3e-4}]
        self.optimizer = SubgroupOptimizer(
            groups, devices=[folder], tile=1024, **{**OPTIONS, **options}
        )
        self.zero = smart_zero.DeepSpeedZeroOptimizer_Stage3(
            self.optimizer, [self.params[:2], self.params[2:]], dtype
        )
        self.flat = self.zero.fp16_partitioned_groups_flat
        if attach:
            self.optimizer.attach(smart_zero.engine(self.zero))

    def train(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            self.zero.step(gradients(self.params, number))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    smart_zero.install(monkeypatch, deepspeed.TESTED)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    made: list[Job] = []

    def make(name: str = "state", **options: Any) -> Job:
        made.append(Job(tmp_path / name, **options))
        return made[-1]

    yield make
    for one in made:
        if one.optimizer._inner is not None:
            one.optimizer.smart.array.kill()


def reference(steps: int, dtype: Any = torch.float32) -> tuple[list[Any], Any]:
    """What torch's fused AdamW makes of the same parameters and gradients."""
    params = [p.detach().to(dtype).float().requires_grad_() for p in tensors(SIZES)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, **OPTIONS, fused=True)
    for number in range(steps):
        for param, gradient in zip(params, gradients(params, number), strict=True):
            param.grad = gradient
        optimizer.step()
    return params, optimizer


def test_subgroups_shown_one_by_one_get_torchs_bits(job: Any) -> None:
    one = job()
    one.train(0, 5)
    params, torchs = reference(5)
    assert differing_bits(one.flat, params) == 0
    state = one.optimizer.smart.state_dict()["state"]
    for i, param in enumerate(params):
        for name in ("exp_avg", "exp_avg_sq"):
            assert differing_bits([state[i][name]], [torchs.state[param][name]]) == 0
    assert one.optimizer.smart.array.step == 5


def test_masters_leave_the_hosts_memory(job: Any) -> None:
    one = job(dtype=torch.bfloat16)
    for master, lp in zip(one.zero.fp32_partitioned_groups_flat, one.flat, strict=True):
        assert master.data_ptr() == lp.data_ptr()
    one.train(0, 4)
    params, _ = reference(4, torch.bfloat16)
    assert all(
        torch.equal(lp, p.to(torch.bfloat16)) for lp, p in zip(one.flat, params, strict=True)
    )


def test_a_schedules_rate_is_the_next_steps(job: Any) -> None:
    one = job()
    one.train(0, 1)
    for group in one.optimizer.param_groups:
        group["lr"] = 0.0
    before = [lp.clone() for lp in one.flat]
    one.train(1, 2)
    one.optimizer.flush()
    assert differing_bits(one.flat, before) == 0
    assert one.optimizer.smart.array.step == 2


def test_new_processes_go_on_from_the_folders(job: Any) -> None:
    one = job()
    one.train(0, 3)
    one.optimizer.close()
    again = job(resume=True)
    assert again.optimizer.smart.array.step == 3
    again.train(3, 6)
    assert differing_bits(again.flat, reference(6)[0]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_the_state_is_loaded_into_new_folders(job: Any, dtype: Any) -> None:
    one = job(dtype=dtype)
    one.train(0, 3)
    saved = one.zero.save()
    one.train(3, 6)
    other = job("other", dtype=dtype)
    other.zero.load(saved)
    other.train(3, 6)
    assert all(torch.equal(a, b) for a, b in zip(other.flat, one.flat, strict=True))
    ours, theirs = (o.optimizer.smart.state_dict()["state"] for o in (other, one))
    assert all(differing_bits([ours[i]["exp_avg"]], [theirs[i]["exp_avg"]]) == 0 for i in ours)


def test_a_checkpoint_of_the_folders_goes_back_a_step_and_no_further(job: Any) -> None:
    one = job(checkpoint="folders")
    one.train(0, 3)
    saved = one.zero.save()
    assert saved["optimizer"] == {"state": {}, "param_groups": [], "step": 3}
    one.train(3, 4)
    one.zero.load(saved)
    one.train(3, 6)
    assert differing_bits(one.flat, reference(6)[0]) == 0
    with pytest.raises(UserError, match=r"step 3 is wanted.* at 6 and the one before"):
        one.zero.load(saved)


def test_parameters_set_by_others_are_taken_and_moments_stay(job: Any) -> None:
    one = job()
    one.train(0, 2)
    for lp in one.flat:
        lp.fill_(0.5)
    one.optimizer.take_parameters()
    state = one.optimizer.smart.state_dict()["state"]
    params, torchs = reference(2)
    for i, param in enumerate(params):
        assert differing_bits([state[i]["exp_avg"]], [torchs.state[param]["exp_avg"]]) == 0
        param.data.fill_(0.5)
        param.grad = gradients(params, 2)[i]
    torchs.step()
    one.train(2, 3)
    assert differing_bits(one.flat, params) == 0


def test_a_step_with_nan_changes_nothing(job: Any) -> None:
    one = job()
    one.train(0, 2)
    bad = gradients(one.params, 2)
    bad[2][5] = float("nan")
    with pytest.raises(NotFinite, match="subgroup 2"):
        one.zero.step(bad)
    assert differing_bits(one.flat, reference(2)[0]) == 0
    one.train(2, 3)
    assert differing_bits(one.flat, reference(3)[0]) == 0


def test_without_attach_the_first_step_lays_out_but_never_resumes(job: Any) -> None:
    one = job(attach=False)
    with pytest.raises(UserError, match=r"state_dict before attach\(engine\)"):
        one.optimizer.state_dict()
    one.train(0, 2)
    assert differing_bits(one.flat, reference(2)[0]) == 0
    one.optimizer.close()
    with pytest.raises(UserError, match=r"holds a state already.*attach\(engine\)"):
        job(attach=False).train(2, 3)
    with pytest.raises(UserError, match=r"resume=True.*attach\(engine\)"):
        job("elsewhere", attach=False, resume=True).train(2, 3)


def test_what_deepspeed_must_not_do_is_a_fault(job: Any) -> None:
    one = job()
    with pytest.raises(Fault, match="subgroup 1 where 0 was due"):
        one.zero.step(gradients(one.params, 0), order=[1])
    with pytest.raises(Fault, match="shows 0 tensors"):
        one.optimizer.step()


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("offload_optimizer", False, "device: use cpu"),
        ("swap_optimizer", True, "device: use cpu"),
        ("partial_offload", 0.5, "ratio = 0.5: use 1"),
        ("zenflow", True, "ZenFlow"),
    ],
)
def test_engines_that_would_not_do(job: Any, attribute: str, value: Any, said: str) -> None:
    one = job(attach=False)
    setattr(one.zero, attribute, value)
    with pytest.raises(UserError, match=said):
        one.optimizer.attach(smart_zero.engine(one.zero))


def test_an_engine_with_another_optimizer(job: Any) -> None:
    one, other = job(attach=False), job("other", attach=False)
    with pytest.raises(UserError, match="another optimizer"):
        one.optimizer.attach(smart_zero.engine(other.zero))
    with pytest.raises(UserError, match=r"zero_optimization\.stage 3"):
        one.optimizer.attach(smart_zero.engine(object()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_norm": 1.0}, "gradient_clipping"),
        ({"accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"compress": "topk:0.01"}, "not supported"),
        ({"speculate": True}, "come with the step"),
        ({"checkpoint": "both"}, "use state or folders"),
        ({"optimizer": "lamb"}, "unknown optimizer 'lamb'"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SubgroupOptimizer(tensors((8,)), devices=[tmp_path], **options)


def test_the_configuration_is_completed_and_nothing_else_changed() -> None:
    given = {"train_batch_size": 4, "zero_optimization": {"sub_group_size": 7}}
    made = deepspeed.config(given)
    assert made == {
        "train_batch_size": 4,
        "zero_optimization": {
            "sub_group_size": 7, "stage": 3, "offload_optimizer": {"device": "cpu"}
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    assert given == {"train_batch_size": 4, "zero_optimization": {"sub_group_size": 7}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"zero_optimization": {"stage": 2}}, "stage = 2: use 3"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "'nvme': use cpu"),
        ({"optimizer": {"type": "AdamW"}}, "names an optimizer"),
    ],
)
def test_configurations_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        deepspeed.config(given)


@pytest.mark.parametrize("version", ["0.18.9", "0.20.0", "1.0.0"])
def test_other_versions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    smart_zero.install(monkeypatch, version)
    with pytest.raises(UserError, match=f"DeepSpeed {version}: use 0.19"):
        SubgroupOptimizer(tensors((8,)), devices=[tmp_path])
    smart_zero.install(monkeypatch, "0.19.3+unknown")
    assert deepspeed.check_version() == "0.19.3+unknown"


def test_without_deepspeed_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(EnvironmentLack, match=r"pip install deepspeed==0\.19\.8"):
        SubgroupOptimizer(tensors((8,)), devices=[tmp_path])


# ---------------------------------------------------------------------- its environment


def made(folder: Path, operators: dict[str, str]) -> deepspeed_environment.Environment:
    (folder / "extensions").mkdir(parents=True)
    (folder / "ready").write_text("3.11\n")
    (folder / "operators").write_text("".join(f"{n} {w}\n" for n, w in operators.items()))
    return deepspeed_environment.Environment(folder)


def test_the_environment_is_found_by_its_operators_for_this_processor(tmp_path: Path) -> None:
    here = deepspeed_environment._here()
    assert deepspeed_environment.find(tmp_path / "absent") is None
    made(tmp_path / "whole", dict.fromkeys(deepspeed_environment.OPERATORS, here))
    assert deepspeed_environment.find(tmp_path / "whole") is not None
    made(tmp_path / "part", {"cpu_adam": here, "async_io": "elsewhere"})
    assert deepspeed_environment.find(tmp_path / "part") is None
    assert deepspeed_environment.find(tmp_path / "part", ("cpu_adam",)) is not None
    assert deepspeed_environment.find(tmp_path / "part", ("async_io",)) is None


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path) -> None:
    there = made(tmp_path, {"cpu_adam": deepspeed_environment._here()})
    for name in ("cpu_adam", "async_io"):
        folder = there.extensions / name
        folder.mkdir()
        for file in ("lock", ".ninja_log"):
            (folder / file).touch()
    with there.held():
        assert not list(there.extensions.glob("*/lock"))
        assert (there.extensions / "cpu_adam" / ".ninja_log").exists()
        assert not (there.extensions / "async_io" / ".ninja_log").exists()


def test_a_missing_library_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, dict.fromkeys(["cpu_adam", "deepspeed_shm_comm"], deepspeed_environment._here()))
    monkeypatch.setattr(deepspeed_environment, "LIBAIO", tmp_path / "absent.h")
    with pytest.raises(EnvironmentLack, match="apt-get install libaio-dev"):
        deepspeed_environment.make(tmp_path)


@pytest.mark.parametrize("experiment", [deepspeed_duel.EXPERIMENT, deepspeed_resume.EXPERIMENT])
def test_smoke_makes_no_environment_and_small_cannot_do_without(
    experiment: experiments.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment.settings("smoke")["make_environment"] is False
    monkeypatch.setenv(deepspeed_environment.VARIABLE, str(tmp_path / "made"))
    made(tmp_path / "made", {})
    monkeypatch.setattr(deepspeed_environment, "LIBAIO", tmp_path / "absent.h")
    monkeypatch.setattr(deepspeed_environment, "OPERATORS", {"async_io": "AsyncIOBuilder"})
    monkeypatch.setattr(deepspeed_environment.make, "__defaults__", (("async_io",),))
    with pytest.raises(EnvironmentLack, match="apt-get install libaio-dev"):
        experiments.run(experiment, artifact="smart_infinity", scale="small", root=tmp_path)
