"""A run that is over in seconds: two epochs of two steps."""

SMALL = [
    "--config.model.name=mlp",
    "--config.epochs=2",
    "--config.batch_size=32",
    "--config.data.train_examples=64",
    "--config.data.validation_examples=32",
    "--config.data.test_examples=40",
    "--config.attack.steps=2",
]
