"""Keys of the run, its images and its network."""

from awp_jax.config._keys import group
from awp_jax.config._kinds import PIXELS, SWITCH, TEXT, choice, integer, number, optional, share

# As awp_jax.models.ACTIVATIONS, which needs Flax.
ACTIVATIONS = ("relu", "silu", "gelu", "mish", "softplus")

INPUTS = (
    group(
        "",
        "The run.",
        ("seed", 0, integer(0), "Of everything that is random."),
        ("epochs", 200, integer(1), "Passes over the training set."),
        (
            "batch_size",
            128,
            integer(1),
            "Images of a step on all devices together; the smaller last batch is kept.",
        ),
        (
            "init_from",
            None,
            optional(TEXT),
            "A run directory whose parameters training starts from; None: fresh ones.",
        ),
        ("init_checkpoint", "best", choice("best", "last", "average"), "Which one of init_from."),
    ),
    group(
        "data",
        "Images, and what augmentation does to them.",
        (
            "name",
            "cifar10",
            TEXT,
            "The data set, as awp_jax.data.load names it, or 'package.module:function'.",
        ),
        ("path", None, optional(TEXT), "Where its files lie; None: $AWP_JAX_DATA."),
        (
            "train_examples",
            None,
            optional(integer(1)),
            "Chosen by the seed; None: all.",
        ),
        (
            "test_examples",
            None,
            optional(integer(1)),
            "So many, classes in proportion; None: all.",
        ),
        ("validation_examples", 1000, integer(0), "Split off the training set."),
        (
            "downsample",
            1,
            integer(1),
            "Blocks of n x n pixels become their average, for small studies.",
        ),
        (
            "device_megabytes",
            2048,
            integer(0),
            "MiB; a larger training set stays on the host, which changes no number.",
        ),
        (
            "image_size",
            224,
            integer(1),
            "Height and width to which image files of any size are decoded (imagenet, images).",
        ),
        (
            "resize",
            256,
            integer(1),
            "Their shorter side before the centre is cut out for evaluation; torchvision's 256.",
        ),
        (
            "interpolation",
            "bilinear",
            choice("bilinear", "bicubic"),
            "How they are resized, with antialiasing.",
        ),
        (
            "resized_crop",
            0.0,
            number(below=1),
            "Least share of their area that a random resized crop takes in training; 0.08 in "
            "torchvision; 0: the centre, as in evaluation.",
        ),
        (
            "workers",
            0,
            integer(0),
            "Processes that decode them ahead in training, by grain (pip install "
            "'awp_jax[grain]'); 0: threads. It changes no number.",
        ),
        ("crop_padding", 4, integer(0), "Pixels around an image before a random crop; 0: none."),
        (
            "crop_mode",
            "reflect",
            choice("reflect", "zero"),
            "What is padded: reflect as in the released train_cifar10.py, zero as for CIFAR-100 "
            "and TRADES.",
        ),
        ("flip", True, SWITCH, "Whether half of the images are mirrored."),
        (
            "rotation_degrees",
            0.0,
            number(),
            "Largest one, in [0, 180]; CIFAR-100: 15.",
        ),
        ("autoaugment", False, SWITCH, "The CIFAR-10 policy of AutoAugment."),
        (
            "trivialaugment",
            False,
            SWITCH,
            "One random operation for each image, of TrivialAugment's wide set.",
        ),
        ("random_erasing", 0.0, share(), "Share of images a rectangle is erased of; 0: off."),
        ("cutout", 0, integer(0), "Pixels of the square that is cut out; 14 in NeurIPS 2020."),
        ("mixup", 0.0, number(), "Alpha of mixup; 1.4 in NeurIPS 2020; 0: off."),
        ("cutmix", 0.0, number(), "Alpha of CutMix; 1 in Yun et al. 2019; 0: off."),
        ("label_noise", 0.0, number(below=1), "Share of training labels drawn anew, in [0, 1)."),
        (
            "extra",
            None,
            optional(TEXT),
            "Files of more images, generated or unlabelled (RST), separated by commas "
            "(docs/methods.md).",
        ),
        (
            "extra_labels",
            None,
            optional(TEXT),
            "A file of pseudo-labels for each of them; None: labels lie beside the images.",
        ),
        (
            "original_fraction",
            0.5,
            number(),
            "Share of a batch that is of the training set, in (0, 1), beside extra images; 0.5 in "
            "RST, 0.3 or 0.2 with generated ones.",
        ),
        ("extra_weight", 1.0, number(), "Lambda of RST: the weight of the extra images' loss."),
    ),
    group(
        "model",
        "The network.",
        (
            "name",
            "preact-resnet-18",
            TEXT,
            "The architecture, as awp_jax.models names it, or 'package.module:function'.",
        ),
        (
            "width",
            None,
            optional(integer(1, 65_536)),
            "Channels of the first stage, or of hidden layers; None: the architecture's own.",
        ),
        (
            "normalize",
            True,
            SWITCH,
            "By the data set's mean and standard deviation, inside the model.",
        ),
        (
            "mean",
            (),
            PIXELS,
            "By which normalize shifts each channel of images in [0, 1]; (): as published, or of "
            "the training images.",
        ),
        (
            "std",
            (),
            PIXELS,
            "By which normalize divides each channel of images in [0, 1]; (): as published, or of "
            "the training images.",
        ),
        (
            "dtype",
            "float32",
            choice("float32", "bfloat16", "float16"),
            "What is computed in; parameters are always float32.",
        ),
        (
            "batch_norm_groups",
            1,
            integer(1),
            "Equal parts of a batch with statistics of their own; 8: PyTorch's DataParallel on "
            "8 GPUs.",
        ),
        (
            "activation",
            None,
            optional(choice(*ACTIVATIONS)),
            f"One of {', '.join(ACTIVATIONS)}; None: the architecture's own.",
        ),
        (
            "remat",
            False,
            SWITCH,
            "Less memory: the backward pass computes residual blocks again.",
        ),
        (
            "pni",
            False,
            SWITCH,
            "Trainable noise on kernels, also at test, alpha from 0.25 (He et al. 2019).",
        ),
    ),
)
