"""Train and test nnU-Net v2 for some minutes. Runs in an environment that has nnunetv2 2.8.

    python scripts/peer_programs/nnunet.py FOLDER MASKS MINUTES [THREADS]

FOLDER/raw holds the volumes that `nnunet_volumes.export` wrote. Planning, preprocessing, network,
loss, augmentation and optimizer are those of nnU-Net's `2d` configuration. The learning rate falls
with the time that is used up, in the form that nnU-Net gives it over the epochs. The masks are
written to the folder MASKS with mirroring, as nnU-Net does by default.
"""

import os
import sys
import time
from pathlib import Path

import torch

WORKERS = 2


def main(folder: str, masks: str, minutes: str, threads: str = "") -> None:
    root = Path(folder).resolve()
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    os.environ.update(folders, nnUNet_n_proc_DA=str(WORKERS))
    if threads:
        torch.set_num_threads(int(threads))
    # nnU-Net reads its folders when it is imported.
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(0)
    planning.extract_fingerprints([1], num_processes=WORKERS)
    planning.plan_experiments([1])
    planning.preprocess([1], configurations=("2d",), num_processes=(WORKERS,))
    trainer = get_trainer_from_args("1", "2d", "all", device=torch.device("cpu"))
    steps = train(trainer, float(minutes) * 60)
    print(f"{steps} steps of {trainer.batch_size} patches in {minutes} minutes", flush=True)
    predict(trainer, Path(folder) / "raw" / "Dataset001_LGG" / "imagesTs", Path(masks))


def train(trainer, seconds: float) -> int:
    """Train until the time is over and return the number of steps."""
    trainer.on_train_start()
    trainer.network.train()
    started, steps = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - elapsed / seconds) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        print(f"step {steps}, {elapsed:.0f} s, loss {float(loss):.4f}", flush=True)
    # This also ends the processes that augment the patches.
    trainer.on_train_end()
    return steps


def predict(trainer, images: Path, masks: Path) -> None:
    """Write the masks of the test volumes."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    masks.mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(str(images), str(masks))


if __name__ == "__main__":
    main(*sys.argv[1:])
