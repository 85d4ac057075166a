"""Every field of a config, with what it means. Other configs start from this one.

Not a recipe by itself: `configs/digits.py` is the smallest one that runs. Fields are locked: a
field that is not listed here is an error. Types and checks are in `drnas_jax/config.py`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: CIFAR-like images, the NAS-Bench-201 space, the Dirichlet."""
    return ConfigDict(
        dict(
            seed=0,  # all randomness of a run follows from it
            seeds=1,  # if more: the command runs this seed and those after it, see README
            space="nasbench201",  # a file of drnas_jax/spaces
            stem="cifar",  # the network's first layers: 'cifar', or 'imagenet' (DARTS alone)
            genotype="",  # retrain this cell (a genotype.json, a published name or 'random')
            checkpoint="",  # evaluate this checkpoint directory, not DIR/retrain/checkpoints
            checkpoint_steps=0,  # a checkpoint after so many steps, besides those of each epoch
            data=dict(
                name="cifar10",  # 'digits', a TFDS name, or 'folder' (one sub-folder a class)
                dir="",  # TFDS data directory, or the folder; empty: TFDS's own default
                image_size=0,  # resize to this many pixels a side; 0: as they are
                crop="padded",  # at random: of the 'padded' image, or (ImageNet) a 'resized' part
                crop_padding=4,  # black pixels on each side if 'padded'; 0: no crop
                flip="auto",  # mirror at random: 'yes', 'no', 'auto' (not digits, MNIST and such)
                mean=(),  # of each channel in 0..1; empty: measured on the training images
                std=(),
                memory_limit_mb=4096,  # a decoded data set larger than this is streamed
                workers=0,  # processes that decode a streamed one; 0: one a core
                corrupt="error",  # unreadable image: 'error', or 'skip' it (streamed: replace it)
            ),
            arch=dict(
                name="dirichlet",  # mixing distribution, a file of drnas_jax/arch
                lr=3e-4,  # Adam on alpha
                b1=0.5,
                b2=0.999,
                clip=0.0,  # global norm of alpha's gradient; 0: not clipped
                regulariser="l2",  # 'l2', 'kl' (Dirichlet only) or 'none'
                strength=1e-3,  # of the regulariser
                temperature=(10.0, 1.0),  # of Gumbel samples, first and last step
            ),
            search=dict(
                channels=16,  # C of the first cell
                cells=5,  # cells a stage of the space (NAS-Bench-201's N), or in all (DARTS)
                batch_size=64,  # global, over all devices
                train_fraction=0.5,  # share of the training images for the weights
                alpha_fraction=0.0,  # share for alpha; 0: all the others
                split_by_class=False,  # whether these are shares of each class
                epochs=(50, 50),  # a number a progressive stage, as in the next three fields
                partial_channels=(4, 2),  # K: 1/K of the channels pass through the operations
                operations=(5, 3),  # operations kept on each edge
                warmup_epochs=(10, 10),  # alpha stays frozen for so many epochs of the stage
                lr=0.025,  # SGD on the weights
                lr_end=0.001,
                lr_schedule="cosine",  # 'cosine' or 'linear', over all stages together
                lr_warmup_epochs=0,  # in place of the schedule's first epochs: a linear rise to lr
                momentum=0.9,
                weight_decay=3e-4,
                clip=5.0,  # global norm of the weights' gradient; 0: not clipped
                sync_batchnorm=False,  # batch statistics over all devices, not per device
                sample_per_device=False,  # a mixing sample a device, not one for all
                edge_ranking="mean",  # DARTS keeps edges by 'mean' or (original code) 'softmax'
                candidates=0,  # cells drawn at the end: the one of the highest validation accuracy
                # in the supernet is the result; 0: the cell of the distribution's mean is
                candidate_batches=16,  # of validation images on which single cells are judged
                ranked_cells=0,  # cells so judged after each epoch, for the history alone
                hessian_batches=0,  # measure the Hessian in alpha after each epoch on so many
            ),
            retrain=dict(
                channels=16,
                cells=5,
                batch_size=64,
                epochs=200,
                lr=0.1,
                lr_end=0.0,
                lr_schedule="cosine",
                lr_warmup_epochs=0,
                momentum=0.9,
                nesterov=False,
                weight_decay=5e-4,
                clip=0.0,
                sync_batchnorm=False,
                cutout=0,  # side of the erased square in pixels; 0: none
                color_jitter=(),  # brightness, contrast, saturation, hue; empty: none
                label_smoothing=0.0,
                drop_path=0.0,  # rate of dropped edges of an example, rising from 0 (DARTS alone)
                auxiliary_weight=0.0,  # of the auxiliary head's loss (DARTS alone); 0: no such head
                max_macs=0.0,  # if set, the widest even C of so many multiply-adds, not `channels`
            ),
            compute=dict(
                kernels="auto",  # by what backend ('cpu', 'gpu', 'tpu', 'plain'); 'auto': this one
                dtype="float32",  # of activations, or 'bfloat16'; parameters are float32 anyway
                remat="auto",  # a gradient keeps 'convolutions' (their results), 'cells' (their
                # inputs), or all ('none'), and computes the rest anew; 'auto': the fastest
                donate=True,  # a step's result takes the memory of the state before
            ),
            nasbench201=dict(
                table="",  # CSV of true accuracies; empty: the one in nasbench201/ beside data.dir
            ),
        )
    )
