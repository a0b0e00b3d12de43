"""What the method of a config is called."""

import pathlib
from typing import Any

from awp_jax.parts import short


def method_name(config: Any) -> str:
    """How tables call the method of a config: ``"AT-AWP"``, ``"RST-RWP"``, ``"AT + mixup"``, ..."""
    d, objective, w = config.data, config.objective, config.weights
    name = "RST" if d.extra and objective.name == "trades" else short(objective.name).upper()
    name += "-PNI" if config.model.pni else ""
    known = {"none": "", "awp": "-AWP", "rwp": "-RWP", "random": "-RandomWP"}
    # What never began is no part of the name: a run that was shortened to try it, say.
    name += known.get(w.method, f"-{short(w.method)}") if w.start_epoch < config.epochs else ""
    attack = short(config.attack.name)
    attack += f", {config.attack.replays} replays" if attack == "free" else ""
    regularisation, optimizer = config.regularisation, config.optimizer
    extras = {
        "shared backward": w.shared_backward,
        f"LSC{list(w.loss_range)}": w.loss_range,
        "extra images": d.extra and not name.startswith("RST"),
        "fine-tuned": config.init_from,
        attack: config.attack.name != "pgd",
        "early-stopped PGD": config.attack.early_stop is not None,
        f"teacher {pathlib.Path(objective.teacher or '').name}": objective.teacher,
        "label smoothing": objective.label_smoothing,
        f"{100 * d.label_noise:g} % label noise": d.label_noise,
        "GradAlign": objective.gradient_alignment,
        "self-supervision": objective.rotation_weight,
        "cutout": d.cutout,
        "mixup": d.mixup,
        "CutMix": d.cutmix,
        "AutoAugment": d.autoaugment,
        "TrivialAugment": d.trivialaugment,
        "random erasing": d.random_erasing,
        config.model.activation: config.model.activation not in (None, "relu"),
        "L1": regularisation.l1,
        "L2": regularisation.l2,
        "weight clipping": regularisation.clip,
        short(optimizer.name): optimizer.name != "sgd",
    }
    return " + ".join([name, *(text for text, on in extras.items() if on)])
