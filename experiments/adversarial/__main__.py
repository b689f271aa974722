"""The command: `python -m experiments.adversarial PRESET`; see the package."""

from pathlib import Path

from experiments import adversarial
from experiments.adversarial import cycles, evaluate, generator, world
from experiments.adversarial.config import Adversarial
from experiments.adversarial.presets import PRESETS
from experiments.adversarial.world import World, check_folders
from experiments.cli import launch
from jaxqr import report


def main(run: Path, config: Adversarial) -> None:
    """Runs every stage of every seed, and writes the tables."""
    check_folders(config)
    world.prepare(run, config.data)
    data = World(run)
    if config.pretrain:
        generator.pretrained(run, data, config.pretrain)
    for seed in config.seeds:
        cycles.main(run, seed, data, config)
    evaluate.main(run, config)
    print(f"wrote {report.write(run)}")


if __name__ == "__main__":
    launch(main, PRESETS, adversarial.__doc__, prefix="adversarial-")
