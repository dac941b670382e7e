"""Does ``xtrainer replay --compare`` find a value that a device has computed wrongly?"""

import shutil
from pathlib import Path

import pytest
import zoo
from experiment_zoo import TRAINED, write_experiment

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.checkpoint.usable import choose_usable
from xtrainer.cli.experiment import load_experiment
from xtrainer.cli.main import main

WRONG = TRAINED.replace('"random": False}', '"random": False, "wrong_at": 0}').replace(
    "    make_trainer(config).train_model(",
    '''    class Wrong(Regression):
        """A device of it computes one number of step ``wrong_at`` wrongly, by one bit."""

        def on_training_step(self, metrics, epoch, step):
            if step == config.data.wrong_at:
                params = jax.tree.map(lambda leaf: leaf, self.state.params)
                kernel = params["Dense_0"]["kernel"]
                host = np.array(kernel)
                host[3, 0] = np.nextafter(host[3, 0], np.float32(9))
                params["Dense_0"]["kernel"] = jax.device_put(host, kernel.sharding)
                self.state = self.state.replace(params=params)

    globals()["Regression"] = Wrong
    make_trainer(config).train_model(''',
)


def run_of(folder: Path, wrong_at: int) -> tuple[str, Path]:
    """Returns an experiment and a run of it, of 12 steps with the checkpoints 4, 8 and 12."""
    path = write_experiment(folder, WRONG)
    experiment = load_experiment(path)
    where = f"--config.trainer.logger.log_path={folder / 'run'}"
    assert experiment.run is not None
    arguments = [where, f"--config.data.wrong_at={wrong_at}"]
    experiment.run(xt.parse_config(experiment.get_config(), arguments))
    assert list_steps(folder / "run" / "checkpoints")[-1] == 12
    return path, folder / "run"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return run_of(tmp_path_factory.mktemp("good"), 0)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return run_of(tmp_path_factory.mktemp("wrong"), 12)


def compare(
    capsys: pytest.CaptureFixture[str], run: tuple[str, Path], *more: str
) -> tuple[int, str]:
    path, folder = run
    capsys.readouterr()
    code = main(["replay", str(folder), "--experiment", path, "--compare", *more])
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_steps_that_were_computed_rightly_are_the_same_bit_for_bit(
    good: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = zoo.files_in(good[1])
    code, said = compare(capsys, good)
    assert code == 0
    assert "The steps 9 to 12, taken again from the checkpoint of step 8: all " in said
    assert "arrays are, bit for bit, those of the checkpoint of step 12." in said
    assert zoo.files_in(good[1]) == before
    shutil.rmtree(good[1] / "checkpoints" / "8")
    code, said = compare(capsys, good, "--step", "12")
    assert code == 0 and "from the beginning: all " in said


def test_one_wrong_bit_of_one_value_is_found_though_every_checksum_is_right(
    wrong: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose_usable(wrong[1], 12).damaged == {}
    code, said = compare(capsys, wrong)
    assert code == 1
    assert "The steps 9 to 12, taken again from the checkpoint of step 8: 1 of " in said
    assert "are not those of the checkpoint of step 12: - params/Dense_0/kernel A device" in said


def test_the_steps_before_it_are_right(
    wrong: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = compare(capsys, wrong, "--step", "8")
    assert code == 0 and "taken again from the beginning: all " in said


def test_another_optimizer_gives_another_state(
    good: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = compare(capsys, good, "--config.optimizer.scheduler.lr=0.01")
    assert code == 1 and "params/Dense_1/kernel" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--step", "5"], "There is nothing to compare with."),
        (["--step", "-3"], "There is nothing to compare with."),
    ],
)
def test_a_step_without_a_checkpoint_is_told(
    wrong: tuple[str, Path], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    code, said = compare(capsys, wrong, *more)
    assert (code, message in said) == (2, True)
