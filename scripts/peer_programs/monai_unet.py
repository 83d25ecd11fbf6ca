"""Train and test the UNet of MONAI's tutorial on 2-D segmentation.

    python scripts/peer_programs/monai_unet.py DATA FOLD MASKS MINUTES [THREADS]

Network, loss, optimizer, crops, rotations and sliding windows are those of
`2d_segmentation/torch/unet_training_dict.py` of github.com/Project-MONAI/tutorials. Half of the
crops lie around tumour. The slices are normalised as by `brainseg.train`, with three sequences as
channels. The masks are written to the folder MASKS as VOLUME.nii.gz.
"""

import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandCropByPosNegLabeld, RandRotate90d
from monai.utils import set_determinism

from brainseg.config import DataConfig, KFoldConfig
from brainseg.data.dataset import MRIDataset
from brainseg.data.open import open_run_data

CROP = (96, 96)


def main(path: str, fold: str, masks: str, minutes: str, threads: str = "") -> None:
    if threads:
        torch.set_num_threads(int(threads))
    set_determinism(0)
    split = KFoldConfig(folds=5, fold=int(fold), validation="none")
    data = open_run_data(DataConfig(path=path), split)
    model = UNet(
        spatial_dims=2,
        in_channels=data.train.channels,
        out_channels=1,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
    )
    steps = train(model, data.train, float(minutes) * 60)
    print(f"{steps} steps of 8 crops in {minutes} minutes")
    predict(model.eval(), data.test, Path(masks))


def train(model: torch.nn.Module, data: MRIDataset, seconds: float) -> int:
    """Train until the time is over and return the number of steps."""
    crops = Compose(
        [
            RandCropByPosNegLabeld(
                keys=["image", "mask"],
                label_key="mask",
                spatial_size=CROP,
                pos=1,
                neg=1,
                num_samples=4,
            ),
            RandRotate90d(keys=["image", "mask"], prob=0.5, spatial_axes=(0, 1)),
        ]
    )
    slices = [
        {"image": sample.image, "mask": sample.mask}
        for sample in map(data.__getitem__, range(len(data)))
    ]
    loader = DataLoader(
        Dataset(slices, crops), batch_size=2, shuffle=True, collate_fn=list_data_collate
    )
    loss_function = DiceLoss(sigmoid=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    started, steps = time.monotonic(), 0
    while True:
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_function(model(batch["image"]), batch["mask"])
            loss.backward()
            optimizer.step()
            steps, total = steps + 1, total + loss.item()
            if time.monotonic() - started > seconds:
                return steps
        print(f"{steps} steps, mean loss {total / len(loader):.4f}", flush=True)


@torch.inference_mode()
def predict(model: torch.nn.Module, data: MRIDataset, folder: Path) -> None:
    """Write the masks of the test volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    for volume in data.volumes:
        image = data.gather(data.of_volume(volume), "cpu")[0]
        logits = sliding_window_inference(image, CROP, 4, model, overlap=0.5)
        mask = (logits[:, 0].sigmoid() >= 0.5).numpy().astype(np.uint8)
        name = f"{data.store.volumes[volume]}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(mask.T, np.eye(4)), folder / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
