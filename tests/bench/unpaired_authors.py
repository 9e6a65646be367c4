"""The training steps of CycleGAN and CUT by their authors' own code, on a CPU: `step.py --authors REPOSITORY`.

The repository is https://github.com/taesungp/contrastive-unpaired-translation, by authors of both papers; nothing of it
is copied here. Its networks have the sizes of ours, and the layers, losses and weights of the papers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import types

CLASSES = {"cyclegan": ("models.cycle_gan_model", "CycleGANModel"), "cut": ("models.cut_model", "CUTModel")}
OPTIONS = {
    "gpu_ids": [],
    "isTrain": True,
    "checkpoints_dir": "",
    "name": "",
    "preprocess": "none",
    "direction": "AtoB",
    "netD": "n_layers",
    "no_dropout": True,
    "normG": "instance",
    "normD": "instance",
    "init_type": "xavier",
    "init_gain": 0.02,
    "no_antialias": True,
    "no_antialias_up": True,
    "gan_mode": "lsgan",
    "lr": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "pool_size": 50,
    "lambda_A": 10.0,
    "lambda_B": 10.0,
    "lambda_identity": 0.5,
    "amp": False,
    "nce_layers": "0,6,9,10,14",  # images, three sizes, the first and the fifth block
    "nce_idt": True,
    "nce_T": 0.07,
    "nce_includes_all_negatives_from_minibatch": False,
    "num_patches": 256,
    "netF": "mlp_sample",
    "netF_nc": 256,
    "lambda_GAN": 1.0,
    "lambda_NCE": 1.0,
    "flip_equivariance": False,
}


def step_of(repository, family, network, game, data):
    """A function that makes one step; prints how many parameters they and we have."""
    sys.path.insert(0, str(repository.resolve()))
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))  # what they draw grids with
    module, name = CLASSES[family]
    channels, batch = data["given"].shape[1], len(data["given"])
    sizes = {"ngf": network.width, "ndf": network.discriminator_width, "n_layers_D": network.patch_levels}
    sizes |= {"netG": f"resnet_{network.blocks}blocks", "input_nc": channels, "output_nc": channels}
    images = {"A": data["given"], "B": data["sample"], "A_paths": [], "B_paths": []}
    with contextlib.redirect_stdout(sys.stderr):
        model = getattr(importlib.import_module(module), name)(argparse.Namespace(**OPTIONS, **sizes, batch_size=batch))
        if family == "cut":
            model.data_dependent_initialize(images)  # its last networks are made then
    theirs = {
        "generator": [getattr(model, f"net{one}") for one in model.model_names if one[0] in "GF"],
        "discriminator": [getattr(model, f"net{one}") for one in model.model_names if one[0] == "D"],
    }
    for player, networks in theirs.items():
        count = sum(p.numel() for one in networks for p in one.parameters())
        ours = sum(p.numel() for p in getattr(game, player).parameters())
        print(f"{family}, {player}: {count:,} parameters of the authors', {ours:,} of ours", file=sys.stderr)

    def step(i):
        model.set_input(images)
        model.optimize_parameters()

    return step
